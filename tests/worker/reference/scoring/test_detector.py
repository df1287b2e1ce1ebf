"""The detector: its targets and decoding agree, it learns, and its file comes back as it went."""

import json

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from toprovar_batch.worker.errors import CheckpointError
from toprovar_batch.worker.reference.scenes.vocab import COLOUR_NAMES, SHAPE_NAMES
from toprovar_batch.worker.reference.scoring.detector import (
    NUM_FEATURES,
    Detection,
    Detector,
    Maps,
    decode,
    overlap,
)
from toprovar_batch.worker.reference.scoring.image_metrics import feature_statistics
from toprovar_batch.worker.reference.scoring.scorer import Scorer, load_scorer, save_scorer
from toprovar_batch.worker.reference.training import augment, detector_training
from toprovar_batch.worker.reference.training.augment import degrade
from toprovar_batch.worker.reference.training.detector_loss import Labels, detector_loss, detector_targets
from toprovar_batch.worker.reference.training.detector_training import (
    RenderPool,
    labelled_scenes,
    render_labelled,
    rounded,
    train_detector_command,
    training_loss,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def rendered():
    """Four pictures of 128 pixels with their labels."""
    images, labels = render_labelled(next(labelled_scenes(5, 4)), 128, CPU)
    return images.float() / 255.0, labels


def perfect_maps(labels, size, *, around=False):
    """Maps that say what the targets ask for."""
    targets = detector_targets(labels, size)
    rows, columns = targets.heat.shape[-2:]
    batch = len(targets.heat)
    box = torch.zeros(batch, 4, rows * columns)
    shape = torch.zeros(batch, len(SHAPE_NAMES), rows * columns)
    colour = torch.zeros(batch, len(COLOUR_NAMES), rows * columns)
    for picture in range(batch):
        for slot in range(labels.shapes.shape[1]):
            if targets.weights[picture, slot, 4] > 0:
                cells = targets.cells[picture, slot] if around else targets.cells[picture, slot, 4:5]
                box[picture, :, cells] = (
                    targets.box[picture, slot].T if around else targets.box[picture, slot, 4:5].T
                )
                shape[picture, targets.shapes[picture, slot], cells] = 20.0
                colour[picture, targets.colours[picture, slot], cells] = 20.0
    heat = torch.logit(targets.heat, eps=1e-6)
    features = torch.zeros(batch, NUM_FEATURES)
    grid = (rows, columns)
    box, shape, colour = (values.unflatten(2, grid) for values in (box, shape, colour))
    return Maps(heat, box, shape, colour, features)


def one_object(box, size=128, shape="cube", colour="red", visible=1.0):
    """Labels of one picture with one object."""
    return Labels(
        torch.tensor([[SHAPE_NAMES.index(shape)]]),
        torch.tensor([[COLOUR_NAMES.index(colour)]]),
        torch.tensor([[box]], dtype=torch.float32),
        torch.tensor([[visible]]),
    )


def test_decoding_perfect_maps_gives_the_labels_back(rendered):
    _, labels = rendered
    found = decode(perfect_maps(labels, (128, 128)), 0.5)
    for row, picture in enumerate(found):
        slots = [slot for slot in range(labels.shapes.shape[1]) if labels.shapes[row, slot] >= 0]
        expected = {
            (SHAPE_NAMES[labels.shapes[row, slot]], COLOUR_NAMES[labels.colours[row, slot]]) for slot in slots
        }
        assert {(seen.shape, seen.colour) for seen in picture} == expected
        assert len(picture) == len(slots)
        for seen in picture:
            near = torch.tensor(seen.box).sub(labels.boxes[row, slots]).abs().amax(1).min()
            assert near < 0.01


def test_perfect_maps_cost_almost_nothing_and_every_mistake_costs():
    labels = one_object((32.0, 40.0, 95.0, 110.0))
    maps, targets = perfect_maps(labels, (128, 128), around=True), detector_targets(labels, (128, 128))
    good = detector_loss(maps, targets)
    assert good < 0.3  # bumps around the middle are cheap, not free
    for wrong in (maps._replace(colour=-maps.colour), maps._replace(shape=-maps.shape)):
        assert detector_loss(wrong, targets) > good + 5
    assert detector_loss(maps._replace(box=maps.box + 1.0), targets) > good + 1
    missed = maps._replace(heat=torch.full_like(maps.heat, -5.0))
    assert detector_loss(missed, targets) > good + 3


def test_hardly_visible_objects_are_neither_wanted_nor_held_against():
    targets = detector_targets(one_object((32.0, 40.0, 96.0, 110.0), visible=0.05), (128, 128))
    assert targets.heat.max() == 0
    assert targets.weights.max() == 0
    assert targets.counts.min() == 0
    assert targets.counts.mean() > 0.8
    assert detector_targets(one_object((32.0, 40.0, 96.0, 110.0)), (128, 128)).counts.min() == 1


def test_an_object_at_the_edge_has_its_targets_inside():
    targets = detector_targets(one_object((118.0, 0.0, 128.0, 6.0)), (128, 128))
    assert targets.heat.amax() == 1
    assert 0 <= targets.cells.min() <= targets.cells.max() < 256
    assert (targets.weights > 0).sum() == 4  # of nine cells the others lie outside


def test_mirrored_labels_are_those_of_the_mirrored_picture(rendered):
    images, labels = rendered
    pool = RenderPool(8, 128, CPU)
    pool.add((images * 255).round().byte(), labels)
    drawn, moved = pool.draw(32, torch.Generator().manual_seed(0))
    mirrored = 0
    for image, boxes in zip(drawn, moved.boxes, strict=True):
        source = next(
            (row, flipped)
            for row, picture in enumerate(images)
            for flipped in (False, True)
            if torch.allclose(image, picture.flip(2) if flipped else picture)
        )
        boxes_there = labels.boxes[source[0]]
        mirrored += source[1]
        assert torch.equal(boxes[:, [1, 3]], boxes_there[:, [1, 3]])
        x = 128 - boxes_there[:, [2, 0]] if source[1] else boxes_there[:, [0, 2]]
        assert torch.equal(boxes[:, [0, 2]], x)
    assert 4 < mirrored < 28


def test_the_pool_replaces_its_oldest():
    pool = RenderPool(4, 8, CPU)
    labels = Labels(
        torch.zeros(3, 12).long(), torch.zeros(3, 12).long(), torch.zeros(3, 12, 4), torch.ones(3, 12)
    )
    for value in (10, 20, 30):
        pool.add(torch.full((3, 3, 8, 8), value, dtype=torch.uint8), labels)
    drawn, _ = pool.draw(64, torch.Generator().manual_seed(0))
    assert {round(value * 255) for value in drawn.unique().tolist()} == {20, 30}


def test_two_peaks_of_one_object_are_one_detection_and_the_surer_shape_wins():
    maps = perfect_maps(one_object((32.0, 40.0, 96.0, 110.0)), (128, 128), around=True)
    heat, shape = maps.heat.clone(), maps.shape.clone()
    row, column = divmod(int(maps.heat.argmax()), 16)
    heat[0, 0, row, column : column + 3] = torch.tensor([3.0, 0.0, 3.2])
    maps.box[0, :, row, column + 2] = maps.box[0, :, row, column]
    shape[0, SHAPE_NAMES.index("cylinder"), row, column + 2] = 1.0
    found = decode(maps._replace(heat=heat, shape=shape), 0.02)[0]
    assert [seen.shape for seen in found] == ["cube"]
    assert found[0].score == pytest.approx(torch.tensor(3.0).sigmoid().item(), abs=1e-3)


def test_an_object_of_no_clear_shape_is_not_reported():
    maps = perfect_maps(one_object((32.0, 40.0, 96.0, 110.0)), (128, 128))
    assert len(decode(maps, 0.3)[0]) == 1
    assert decode(maps._replace(shape=torch.zeros_like(maps.shape)), 0.3) == [[]]


def test_overlap_is_intersection_over_union():
    first = Detection("cube", "red", 1.0, (0.0, 0.0, 2.0, 2.0))
    assert overlap(first, first) == 1.0
    assert overlap(first, Detection("cube", "red", 1.0, (1.0, 0.0, 3.0, 2.0))) == pytest.approx(1 / 3)
    assert overlap(first, Detection("cube", "red", 1.0, (2.0, 0.0, 3.0, 2.0))) == 0.0


def test_degraded_pictures_stay_pictures_and_some_stay_whole(rendered):
    images = rendered[0].repeat(2, 1, 1, 1)
    worse = degrade(images, torch.Generator().manual_seed(1))
    again = degrade(images, torch.Generator().manual_seed(1))
    assert worse.shape == images.shape
    assert torch.equal(worse, again)
    assert 0 <= worse.min() <= worse.max() <= 1
    assert torch.equal(worse[6:], images[6:])
    error = (worse - images).square().mean((1, 2, 3))
    assert (error[:6] > 0).all()
    assert (error < 0.03).all()


def test_compression_without_rounding_would_change_nothing(rendered, monkeypatch):
    monkeypatch.setattr(augment.torch, "round", lambda values: values)
    worse = augment._compress(rendered[0], torch.Generator().manual_seed(1))
    torch.testing.assert_close(worse, rendered[0], atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_few_steps_lower_the_loss_until_the_detector_finds_the_truth(monkeypatch):
    monkeypatch.setattr("toprovar_batch.worker.reference.scoring.detector.WORKING_SIDE", 128)
    torch.manual_seed(0)
    images, labels = render_labelled(next(labelled_scenes(5, 2)), 128, CPU)
    images = images.float() / 255.0
    detector = Detector()
    optimizer = torch.optim.AdamW(detector.parameters(), lr=2e-3)
    losses = []
    for _ in range(80):
        loss = training_loss(detector, images, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    for row, found in enumerate(detector.eval().detect(images)):
        truth = sorted(
            (SHAPE_NAMES[shape], COLOUR_NAMES[colour])
            for shape, colour in zip(labels.shapes[row], labels.colours[row], strict=True)
            if shape >= 0
        )
        assert sorted((seen.shape, seen.colour) for seen in found) == truth
    larger = torch.nn.functional.interpolate(images, (256, 256), mode="nearest")
    near, far = detector.detect(images)[0][0], detector.detect(larger)[0][0]  # boxes count in own pixels
    assert torch.tensor(far.box).div(torch.tensor(near.box)).sub(2).abs().max() < 0.3


def test_a_scorer_comes_back_from_its_file(tmp_path):
    detector = rounded(Detector(min_score=0.42))
    references = {64: feature_statistics(torch.rand(9, NUM_FEATURES))}
    path = tmp_path / "scorer.safetensors"
    save_scorer(Scorer(detector, references, {"steps": 3}), path)
    assert path.stat().st_size < 5 << 20
    loaded = load_scorer(CPU, path)
    assert loaded.detector.min_score == 0.42
    assert loaded.record == {"steps": 3}
    assert loaded.references[64].count == 9
    torch.testing.assert_close(loaded.references[64].covariance, references[64].covariance)
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(loaded.detector.features(images), detector.features(images))
    assert loaded.detector.features(images).shape == (1, NUM_FEATURES)


def test_a_file_that_is_no_scorer_is_refused(tmp_path):
    path = tmp_path / "scorer.safetensors"
    with pytest.raises(CheckpointError, match="weights are missing; train them with"):
        load_scorer(CPU, path)
    save_scorer(Scorer(Detector(), {64: feature_statistics(torch.rand(9, NUM_FEATURES))}, {}), path)
    state = load_file(path)
    names = {"shapes": json.dumps(SHAPE_NAMES), "colours": json.dumps(COLOUR_NAMES)}
    good = {"min_score": "0.3", "record": "{}"} | names
    for metadata, message in (
        ({}, "not a scorer's file"),
        (good | {"min_score": "much"}, "not a scorer's file"),
        (good | {"shapes": "[]"}, "other shapes or colours"),
    ):
        save_file(state, path, metadata)
        with pytest.raises(CheckpointError, match=message):
            load_scorer(CPU, path)
    save_file({name: tensor for name, tensor in state.items() if "reference" not in name}, path, good)
    with pytest.raises(CheckpointError, match="no reference statistics"):
        load_scorer(CPU, path)
    save_file(state | {"reference.64.mean": torch.zeros(3)}, path, good)
    with pytest.raises(CheckpointError, match=r"reference\.64 is not the statistics"):
        load_scorer(CPU, path)


@pytest.mark.slow
def test_the_training_command_leaves_a_scorer_and_its_record(tmp_path, monkeypatch):
    monkeypatch.setattr("toprovar_batch.worker.reference.scoring.detector.WORKING_SIDE", 64)
    monkeypatch.setattr(detector_training, "REFERENCE_SIDES", (32, 64))
    monkeypatch.setattr(detector_training, "_FLOOR_RENDERS", 6)
    output = tmp_path / "scorer.safetensors"
    options = "--minutes 0.02 --side 64 --fresh 2 --batch 2 --pool 4 --workers 0 --checked 1 --references 6"
    result = CliRunner().invoke(
        train_detector_command, ["--output", str(output), *options.split()], catch_exceptions=False
    )
    assert result.exit_code == 0
    record = json.loads(output.with_suffix(".json").read_text())
    assert record["steps"] >= 2
    scorer = load_scorer(CPU, output)
    assert scorer.record == record
    assert list(scorer.references) == [32, 64]
    assert record["frechet_of_renders"]["64"]["distance"] > 0
    assert scorer.detector.min_score == record["min_score"]
    for check in record["checks"].values():
        assert 0 <= check["own"]["overall"] <= 1
        assert check["renders"] == 6
    again = CliRunner().invoke(
        train_detector_command,
        ["--output", str(output), "--measure", *options.split()],
        catch_exceptions=False,
    )
    assert again.exit_code == 0
    assert (
        json.loads(output.with_suffix(".json").read_text()) == record
    )  # the same weights, measured the same way
