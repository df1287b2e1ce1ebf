"""Trains the detector on renders of training and held-out combinations: it has to judge both.

Scenes come from worker processes and are rendered on the device into a pool. Every step draws pictures from it and
gives them a generator's defects. The seeds here are no others': not the generator's, not the evaluation prompts'.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from toprovar_batch.worker.reference.scenes import SceneTensors, pack, render, sample_scenes
from toprovar_batch.worker.reference.scenes.vocab import COLOUR_NAMES, MAX_OBJECTS, SPLITS, TASKS
from toprovar_batch.worker.reference.scoring.detector import Detector
from toprovar_batch.worker.reference.scoring.image_metrics import frechet_distance
from toprovar_batch.worker.reference.scoring.scorer import Scorer, load_scorer, save_scorer
from toprovar_batch.worker.reference.scoring.scorer_check import (
    calibrate,
    reference_statistics,
    scorer_accuracy,
)
from toprovar_batch.worker.whole_file import write_whole

from .augment import degrade
from .detector_loss import Labels, detector_loss, detector_targets
from .schedule import AveragedWeights, TimedCosine

TRAINING_SEED: Final = 41_001
CALIBRATION_SEED: Final = 41_002
CHECK_SEED: Final = 41_003
REFERENCE_SEED: Final = 41_004
REFERENCE_SIDES: Final = (256, 512)
_FLOOR_RENDERS: Final = 412  # as many as jobs/geneval.yaml makes: what a perfect generator would get
_KINDS: Final = (*TASKS, *(None,) * len(TASKS))
"""Tasks of the scenes in turn: half of one task each, half of the training mix with its crowded scenes."""


@dataclass(frozen=True)
class DetectorTraining:
    """The recipe.

    Attributes:
        minutes: of training; calibration and check come on top.
        side: pixels of the pictures.
        small_fraction: part of the time spent first on pictures of half the side, which cost a quarter.
        fresh: scenes rendered at a time.
        batch: pictures per step.
        draws: steps for every rendering; each render is seen `draws * batch / fresh` times on average.
        pool: renders kept to draw from.
        peak_rate: learning rate of AdamW.
        decay: of the averaged weights.
        num_workers: processes that make scenes; 0 makes them here.
        checked: renders per task in the check; the calibration takes a third of them.
        references: renders behind the Frechet distance, for each of two sizes.
    """

    minutes: float = 4.0
    side: int = 512
    small_fraction: float = 0.3
    fresh: int = 64
    batch: int = 64
    draws: int = 2
    pool: int = 4096
    peak_rate: float = 2e-3
    decay: float = 0.998
    num_workers: int = 8
    checked: int = 300
    references: int = 2048


class LabelledScenes(NamedTuple):
    """Packed scenes with the colour index of every object slot, int64 [B, N], -1 for empty ones."""

    tensors: SceneTensors
    colours: Tensor


class _SceneStream(Dataset[LabelledScenes]):
    """Batch i is the same whatever was drawn before; splits and tasks take turns in it."""

    def __init__(self, seed: int, batch_size: int) -> None:
        self._seed, self._batch_size = seed, batch_size

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> LabelledScenes:
        scenes = []
        for number in range(index * self._batch_size, (index + 1) * self._batch_size):
            split, task = SPLITS[number % 2], _KINDS[number // 2 % len(_KINDS)]
            scenes += sample_scenes(self._seed, 1, split, task, start=number)
        colours = torch.full((len(scenes), MAX_OBJECTS), -1)
        for row, scene in enumerate(scenes):
            for slot, thing in enumerate(scene.objects):
                colours[row, slot] = COLOUR_NAMES.index(thing.colour)
        return LabelledScenes(pack(scenes), colours)


def labelled_scenes(seed: int, batch_size: int, num_workers: int = 0) -> Iterator[LabelledScenes]:
    """A million batches of scenes with the colours of their objects, in order."""
    return iter(
        DataLoader(
            _SceneStream(seed, batch_size),
            batch_size=None,
            shuffle=False,
            num_workers=num_workers,
            prefetch_factor=8 if num_workers else None,
        )
    )


def render_labelled(scenes: LabelledScenes, side: int, device: torch.device) -> tuple[Tensor, Labels]:
    """Pictures, uint8 [B, 3, side, side], with their labels on the device."""
    rendered = render(scenes.tensors.to(device), (side, side))
    shapes = scenes.tensors.object_kinds[..., 0].to(device)
    labels = Labels(shapes, scenes.colours.to(device), rendered.boxes, rendered.visible_fraction)
    return (rendered.images * 255.0).round().to(torch.uint8), labels


class RenderPool:
    """The latest renders, on the device, to draw batches from."""

    def __init__(self, capacity: int, side: int, device: torch.device) -> None:
        self.side = side
        self._images = torch.empty((capacity, 3, side, side), dtype=torch.uint8, device=device)
        self._labels = Labels(
            torch.empty((capacity, MAX_OBJECTS), dtype=torch.int64, device=device),
            torch.empty((capacity, MAX_OBJECTS), dtype=torch.int64, device=device),
            torch.empty((capacity, MAX_OBJECTS, 4), device=device),
            torch.empty((capacity, MAX_OBJECTS), device=device),
        )
        self.added = 0

    def add(self, images: Tensor, labels: Labels) -> None:
        """Take in new renders for the oldest."""
        places = torch.arange(self.added, self.added + len(images), device=images.device) % len(self._images)
        self._images[places] = images
        for name in ("shapes", "colours", "boxes", "visible"):
            getattr(self._labels, name)[places] = getattr(labels, name)
        self.added += len(images)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Labels]:
        """Random pictures, float32 [count, 3, H, W] in [0, 1], half of them mirrored, with their labels."""
        held = min(self.added, len(self._images))
        rows = torch.randint(held, (count,), device=self._images.device, generator=generator)
        mirrored = torch.rand(count, device=rows.device, generator=generator) < 0.5
        images = self._images[rows].float() / 255.0
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        return images, self._labels[rows].mirrored(mirrored, images.shape[-1])


def training_loss(detector: Detector, images: Tensor, labels: Labels) -> Tensor:
    """Loss on pictures float32 [B, 3, H, W] in [0, 1], in bfloat16 on a GPU."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda):
        maps = detector(images)
    return detector_loss(maps, detector_targets(labels, (images.shape[-2], images.shape[-1])))


def _fit(recipe: DetectorTraining, device: torch.device) -> tuple[Detector, dict[str, Any]]:
    """Train for the recipe's time; gives the averaged weights and what was done."""
    torch.manual_seed(TRAINING_SEED)
    torch.backends.cudnn.benchmark = True
    generator = torch.Generator(device).manual_seed(TRAINING_SEED)
    detector = Detector().to(device)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=0.0, weight_decay=0.02)
    averaged = AveragedWeights(detector, recipe.decay)
    pool = RenderPool(recipe.pool, recipe.side // 2, device)
    stream = labelled_scenes(TRAINING_SEED, recipe.fresh, recipe.num_workers)
    clock = TimedCosine(recipe.peak_rate, recipe.minutes, warmup_seconds=min(10.0, 3.0 * recipe.minutes))
    step, renders, recent = 0, 0, torch.zeros((), device=device)
    for scenes in stream:
        if pool.side < recipe.side and clock.fraction >= recipe.small_fraction:
            pool = RenderPool(recipe.pool, recipe.side, device)
        pool.add(*render_labelled(scenes, pool.side, device))
        renders += recipe.fresh
        for _ in range(recipe.draws):
            images, labels = pool.draw(recipe.batch, generator)
            loss = training_loss(detector, degrade(images, generator), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(detector.parameters(), 5.0)
            for group in optimizer.param_groups:
                group["lr"] = clock.rate
            optimizer.step()
            averaged.update(detector)
            step += 1
            recent = loss.detach() if step == 1 else torch.lerp(recent, loss.detach(), 0.1)
        if step // recipe.draws % 25 == 1:
            print(
                f"{clock.elapsed:6.0f} s  step {step:6d}  renders {renders:7d}  {pool.side} px  loss {recent.item():.4f}",
                flush=True,
            )
        if clock.over:
            break
    record = {"steps": step, "renders": renders, "seconds": clock.elapsed, "loss": recent.item()}
    assert isinstance(averaged.module, Detector)
    return averaged.module, record


def train_detector(recipe: DetectorTraining, output: Path, device: torch.device) -> dict[str, Any]:
    """Train, calibrate, measure and save the scorer; a record goes beside it as JSON.

    Args:
        recipe: how.
        output: the safetensors file to write.
        device: to train on.

    Returns:
        The record: steps, seconds, and what `measure_scorer` adds.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    detector, record = _fit(recipe, device)
    save_scorer(Scorer(detector, {}, record), output)  # safe before anything below can fail
    return measure_scorer(detector, record, recipe, output, device)


def measure_scorer(
    detector: Detector, record: dict[str, Any], recipe: DetectorTraining, output: Path, device: torch.device
) -> dict[str, Any]:
    """Calibrate, measure and save a scorer; a record goes beside it as JSON.

    Everything is measured on the weights as they are in the file.

    Args:
        detector: trained.
        record: of its training.
        recipe: how much to measure.
        output: the safetensors file to write.
        device: of the detector.

    Returns:
        The record with threshold, the Frechet distance of other renders and, for untouched, degraded and half-size
        renders, how often the scorer is right.
    """
    generator = torch.Generator(device).manual_seed(CALIBRATION_SEED)

    def worsen(images: Tensor) -> Tensor:
        return degrade(images, generator)

    detector = rounded(detector)
    detector.min_score = calibrate(detector, CALIBRATION_SEED, -(-recipe.checked // 3), recipe.side, worsen)
    references = {
        side: reference_statistics(detector, REFERENCE_SEED, recipe.references, side)
        for side in REFERENCE_SIDES
    }
    others = {
        side: reference_statistics(detector, CHECK_SEED, _FLOOR_RENDERS, side) for side in REFERENCE_SIDES
    }
    small = REFERENCE_SIDES[0]
    record |= {
        "min_score": detector.min_score,
        "frechet_of_renders": {
            str(side): {
                "images": statistics.count,
                "distance": frechet_distance(statistics, references[side]),
            }
            for side, statistics in others.items()
        },
        "checks": {
            f"renders of {recipe.side} pixels": scorer_accuracy(
                detector, CHECK_SEED, recipe.checked, recipe.side
            ),
            f"degraded renders of {recipe.side} pixels": scorer_accuracy(
                detector, CHECK_SEED, recipe.checked, recipe.side, worsen
            ),
            f"renders of {small} pixels": scorer_accuracy(detector, CHECK_SEED, recipe.checked, small),
        },
    }
    save_scorer(Scorer(detector, references, record), output)
    load_scorer(device, output)
    write_whole(output.with_suffix(".json"), json.dumps(record, indent=2) + "\n")
    return record


def rounded(detector: Detector) -> Detector:
    """The detector with its weights rounded to bfloat16, as the file holds them, computing in float32."""
    return detector.to(torch.bfloat16).float().eval().requires_grad_(False)


@click.command("detector")
@click.option(
    "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="File to write."
)
@click.option("--minutes", default=4.0, show_default=True, help="Of training; the check takes another.")
@click.option("--side", default=512, show_default=True, help="Pixels of the pictures trained on.")
@click.option("--small-fraction", default=0.3, show_default=True, help="Part of the time at half the side.")
@click.option("--fresh", default=64, show_default=True, help="Scenes rendered at a time.")
@click.option("--batch", default=64, show_default=True, help="Pictures per step.")
@click.option("--draws", default=2, show_default=True, help="Steps for every rendering.")
@click.option("--pool", default=4096, show_default=True, help="Renders kept to draw from.")
@click.option("--workers", default=8, show_default=True, help="Processes that make scenes.")
@click.option("--checked", default=300, show_default=True, help="Renders per task in the check.")
@click.option("--references", default=2048, show_default=True, help="Renders behind the Frechet distance.")
@click.option(
    "--measure",
    is_flag=True,
    help="Do not train: calibrate and measure the scorer in OUTPUT again, after the scenes have changed.",
)
def train_detector_command(
    output: Path,
    minutes: float,
    side: int,
    small_fraction: float,
    fresh: int,
    batch: int,
    draws: int,
    pool: int,
    workers: int,
    checked: int,
    references: int,
    measure: bool,
) -> None:
    """Train the detector that scores pictures."""
    recipe = DetectorTraining(
        minutes=minutes,
        side=side,
        small_fraction=small_fraction,
        fresh=fresh,
        batch=batch,
        draws=draws,
        pool=pool,
        num_workers=workers,
        checked=checked,
        references=references,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if measure:
        scorer = load_scorer(device, output)
        record = measure_scorer(scorer.detector, dict(scorer.record), recipe, output, device)
    else:
        record = train_detector(recipe, output, device)
    print(json.dumps(record, indent=2))
