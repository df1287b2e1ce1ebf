from collections import Counter
from dataclasses import replace

import pytest
import torch

from toprovar_batch.worker.reference.scenes import (
    SceneTensors,
    caption,
    ground_truth,
    make_batch,
    pack,
    render,
    sample_scenes,
    seen_in_training,
    task_prompt,
    task_prompts,
)
from toprovar_batch.worker.reference.scenes.split import heldout_floors, heldout_pairs, is_heldout_pair
from toprovar_batch.worker.reference.scenes.vocab import COLOUR_NAMES, MAX_OBJECTS, TASK_SHAPES, TASKS


@pytest.fixture(scope="module")
def scenes():
    return sample_scenes(11, 48)


@pytest.fixture(scope="module")
def rendered(scenes):
    return render(pack(scenes), (112, 112))


def test_a_scene_depends_on_its_index_and_not_on_the_count() -> None:
    whole = sample_scenes(4, 30)
    assert whole == sample_scenes(4, 30)
    assert whole[17:23] == sample_scenes(4, 6, start=17)
    assert whole != sample_scenes(5, 30)


def test_an_unknown_split_or_task_is_named() -> None:
    with pytest.raises(ValueError, match="'test'"):
        sample_scenes(0, 1, "test")
    with pytest.raises(ValueError, match="'colors'"):
        sample_scenes(0, 1, task="colors")


def test_training_shows_no_held_out_combination() -> None:
    for scene in (*sample_scenes(1, 1500), *(s for task in TASKS for s in sample_scenes(1, 60, task=task))):
        assert all(seen_in_training(thing.shape, thing.colour) for thing in scene.objects)
        if len(scene.objects) == 2:
            assert not is_heldout_pair(*(thing.shape for thing in scene.objects))
        if len(scene.objects) == 1:
            assert scene.floor.kind not in heldout_floors(scene.objects[0].shape)


@pytest.mark.parametrize("task", [None, *TASKS])
def test_every_held_out_scene_shows_something_new(task: str | None) -> None:
    for scene in sample_scenes(2, 60, "heldout", task):
        shapes = [thing.shape for thing in scene.objects]
        fresh = any(not seen_in_training(thing.shape, thing.colour) for thing in scene.objects)
        new_floor = len(shapes) == 1 and scene.floor.kind in heldout_floors(shapes[0])
        new_pair = len(shapes) == 2 and is_heldout_pair(*shapes)
        assert fresh or new_floor or new_pair


def test_a_tenth_to_a_sixth_of_the_pairs_is_held_out_and_every_shape_keeps_most_colours() -> None:
    share = len(heldout_pairs()) / (len(TASK_SHAPES) * len(COLOUR_NAMES))
    assert 0.10 <= share <= 0.16
    assert max(Counter(shape for shape, _ in heldout_pairs()).values()) <= 2


def test_held_out_prompts_never_appear_in_training() -> None:
    known = {caption(scene, seed) for seed, scene in enumerate(sample_scenes(3, 4000))}
    for task in TASKS:
        prompts = task_prompts(task, 30)
        assert len(prompts) >= 9
        assert not known & {prompt.text for prompt in prompts}


def test_the_same_scenes_give_the_same_bits(scenes, rendered) -> None:
    again = render(pack(sample_scenes(11, 48)), (112, 112))
    assert torch.equal(again.images, rendered.images)
    assert torch.equal(again.instances, rendered.instances)


def test_a_picture_does_not_depend_on_its_batch(scenes, rendered) -> None:
    alone = render(pack(scenes[5:6]), (112, 112))
    cut = render(pack(scenes[:12]), (112, 112), max_samples=5 * 4 * 112 * 112)
    assert torch.allclose(alone.images[0], rendered.images[5], atol=1e-5)
    assert torch.allclose(cut.images, rendered.images[:12], atol=1e-5)
    assert torch.equal(cut.instances, rendered.instances[:12])


def test_pictures_are_finite_in_range_and_not_flat(rendered) -> None:
    assert rendered.images.isfinite().all()
    assert rendered.images.min() >= 0.0
    assert rendered.images.max() <= 1.0
    assert rendered.images.flatten(1).std(1).min() > 0.02


@pytest.mark.parametrize("size", [(63, 111), (111, 63)])
def test_odd_sizes_keep_every_object_in_the_picture(scenes, size: tuple[int, int]) -> None:
    result = render(pack(scenes[:4]), size, supersample=1)
    assert result.images.shape == (4, 3, *size)
    for row, scene in enumerate(scenes[:4]):
        assert len(result.instances[row].unique()) == len(scene.objects) + 1


def test_boxes_and_instances_agree_and_named_objects_are_mostly_visible(scenes, rendered) -> None:
    for row, scene in enumerate(scenes):
        truths = ground_truth(scene, rendered, row)
        assert sorted(truth.depth_order for truth in truths) == list(range(len(scene.objects)))
        for slot, truth in enumerate(truths):
            ys, xs = (rendered.instances[row] == slot).nonzero().unbind(1)
            assert truth.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            assert truth.visible_fraction > (0.8 if scene.task else 0.55)
        assert rendered.boxes[row, len(scene.objects) :].abs().sum() == 0


def test_a_smooth_sphere_shows_its_colour_at_full_visibility() -> None:
    scene = next(s for s in sample_scenes(8, 400, task="colours") if s.objects[0].shape == "sphere")
    red = replace(
        scene, objects=(replace(scene.objects[0], colour="red", material="matte", pattern="plain"),)
    )
    result = render(pack([red]), (96, 96))
    mask = result.instances[0] == 0
    mean = result.images[0][:, mask].mean(1)
    assert result.visible_fraction[0, 0] == 1.0
    assert mean[0] > 2.5 * mean[1:].max()


def test_high_frequencies_grow_with_complexity(scenes, rendered) -> None:
    grey = rendered.images.mean(1)
    fine = (
        4 * grey[:, 1:-1, 1:-1]
        - grey[:, :-2, 1:-1]
        - grey[:, 2:, 1:-1]
        - grey[:, 1:-1, :-2]
        - grey[:, 1:-1, 2:]
    )
    energy = fine.abs().mean((1, 2))
    ranks = torch.stack(
        [
            torch.tensor([scene.complexity for scene in scenes]).argsort().argsort().float(),
            energy.argsort().argsort().float(),
        ]
    )
    assert torch.corrcoef(ranks)[0, 1] > 0.75


def test_the_sampler_reaches_every_class_of_complexity() -> None:
    found = Counter(scene.complexity_class for scene in sample_scenes(6, 400))
    assert min(found[name] for name in ("plain", "simple", "moderate", "detailed", "busy")) >= 12


@pytest.mark.parametrize("task", TASKS)
def test_a_task_prompt_is_true_of_its_picture(task: str) -> None:
    some = sample_scenes(9, 16, "heldout", task)
    result = render(pack(some), (96, 96), supersample=1)
    for row, scene in enumerate(some):
        prompt, truths = task_prompt(scene), ground_truth(scene, result, row)
        assert sum(wanted.count for wanted in prompt.wanted) == len(truths)
        for wanted in prompt.wanted:
            fitting = [t for t in truths if t.shape == wanted.shape and wanted.colour in {None, t.colour}]
            assert len(fitting) == wanted.count
        if prompt.relation is not None:
            first, second = (centre(truth.box) for truth in truths)
            assert in_relation(prompt.relation, first, second, margin=4.0)


def centre(box: tuple[float, float, float, float]) -> tuple[float, float]:
    return 0.5 * (box[0] + box[2]), 0.5 * (box[1] + box[3])


def in_relation(
    relation: str, first: tuple[float, float], second: tuple[float, float], margin: float
) -> bool:
    right, down = first[0] - second[0], first[1] - second[1]
    reach = {"left of": -right, "right of": right, "above": -down, "below": down}
    return reach[relation] > margin


def test_packed_batches_can_be_sliced_joined_and_pickled() -> None:
    batch = make_batch(3, 10, 6)
    parts = SceneTensors.cat([batch.tensors[:2], batch.tensors[2:]])
    assert torch.equal(parts.objects, batch.tensors.objects)
    assert batch.tensors.objects.shape == (6, MAX_OBJECTS, 20)
    later = make_batch(3, 12, 2)
    assert later.captions == batch.captions[2:4]
    assert torch.equal(later.tensors.objects, batch.tensors.objects[2:4])


def test_a_scene_with_too_many_objects_is_refused(scenes) -> None:
    crowd = replace(scenes[0], objects=scenes[0].objects[:1] * 13)
    with pytest.raises(ValueError, match="13 objects"):
        pack([crowd])
