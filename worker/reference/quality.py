"""What pruning costs and saves on the reference model: policies side by side, over the same prompts and seeds.

`python -m toprovar_batch.worker.reference.quality --output quality.json` measures every comparison of `comparisons.py`.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import torch
from torch import Tensor
from tqdm import tqdm

from toprovar_batch.worker.engine import Engine
from toprovar_batch.worker.generated import GeneratedBatch, PhaseTimes
from toprovar_batch.worker.pruning.policies.specs import DenseSpec, PolicySpec
from toprovar_batch.worker.request import GenerationRequest
from toprovar_batch.worker.resolved import resolve
from toprovar_batch.worker.specs import EngineSpec, ModelSpec, RuntimeSpec

from .quality_tables import as_text, rows_of
from .scenes import TaskPrompt, task_prompts
from .scenes.vocab import TASKS
from .scoring.image_metrics import feature_statistics, frechet_distance, psnr, ssim
from .scoring.scorer import Scorer, load_scorer
from .scoring.verdict import clustered_error, judge, overall_score, task_score
from .studies.comparisons import COMPARISONS

_FIRST_PRUNABLE: Final = 5
"""Of the ten scales at 512 x 512, those after the paper's representative one (its sixth of 13, in proportion)."""


@dataclass(frozen=True)
class Pictures:
    """Everything one policy made.

    Attributes:
        passed: for each request whether its picture shows what was asked for.
        features: [n, F] of the scorer's detector.
        pixels: [n, H, W, 3] uint8 RGB on the CPU.
        keep_ratio: [n][S] of each picture and scale.
        token_layer_fraction: of each picture.
        start_scale: of each picture.
        images_per_second: of the transformer and sampling. The first batch of each size warms up and does not count;
            None where there are no others.
    """

    passed: list[bool]
    features: Tensor
    pixels: Tensor
    keep_ratio: list[list[float]]
    token_layer_fraction: list[float]
    start_scale: list[int]
    images_per_second: float | None


def requests_of(prompts: Sequence[TaskPrompt], images: int, first_seed: int) -> list[GenerationRequest]:
    """`images` requests a prompt, prompt after prompt; no two share a seed."""
    return [
        GenerationRequest(f"{row}-{image}", prompt.text, None, first_seed + row * images + image)
        for row, prompt in enumerate(prompts)
        for image in range(images)
    ]


def generated(
    engine: Engine, requests: Sequence[GenerationRequest], batch_size: int
) -> Iterator[tuple[Sequence[GenerationRequest], GeneratedBatch, float]]:
    """Generate in batches; gives each with its seconds in transformer and sampling."""
    for start in range(0, len(requests), batch_size):
        batch = requests[start : start + batch_size]
        times = PhaseTimes()
        made = engine.generate_pixels(batch, engine.schedule_of(batch[0].h_div_w), times)
        yield batch, made, times.sample


def run_policy(
    engine: Engine,
    scorer: Scorer,
    prompts: Sequence[TaskPrompt],
    images: int,
    *,
    batch_size: int,
    first_seed: int,
) -> Pictures:
    """Generate all prompts and let the detector read the pictures.

    Args:
        engine: set up, with the policy.
        scorer: on the same device.
        prompts: each with what its picture must show.
        images: a prompt.
        batch_size: pictures a batch.
        first_seed: of the first picture; the others count on.
    """
    requests = requests_of(prompts, images, first_seed)
    passed: list[bool] = []
    features, pixels = [], []
    keep_ratio, fractions, starts = [], [], []
    speeds: list[tuple[int, float]] = []
    for batch, made, seconds in generated(engine, requests, batch_size):
        speeds.append((len(batch), seconds))
        pictures = torch.from_numpy(made.pixels)
        pixels.append(pictures)
        seen, found = scorer.detector.read(_floats(pictures, scorer.detector.device))
        features.append(found.cpu())
        for things in seen:
            prompt = prompts[len(passed) // images]
            passed.append(judge(prompt.wanted, prompt.relation, things).passed)
        keep_ratio += [work.keep_ratio for work in made.work]
        fractions += [work.token_layer_fraction for work in made.work]
        starts += [work.pruning_start_scale for work in made.work]
    return Pictures(
        passed,
        torch.cat(features),
        torch.cat(pixels),
        keep_ratio,
        fractions,
        starts,
        warm_speed(speeds),
    )


def warm_speed(speeds: Sequence[tuple[int, float]]) -> float | None:
    """Pictures a second of (pictures, seconds) batches but the first of each size; None where that leaves none."""
    sizes = [count for count, _ in speeds]
    warm = [speed for index, speed in enumerate(speeds) if sizes.index(speed[0]) < index]
    if not warm:
        return None
    return sum(count for count, _ in warm) / sum(seconds for _, seconds in warm)


def _floats(pixels: Tensor, device: torch.device) -> Tensor:
    """[B, H, W, 3] uint8 to [B, 3, H, W] float32 in [0, 1]."""
    return pixels.to(device).permute(0, 3, 1, 2).float() / 255.0


def likeness(first: Tensor, second: Tensor, device: torch.device) -> tuple[list[float], list[float]]:
    """SSIM and PSNR (dB) of pairs of pictures, [n, H, W, 3] uint8 each."""
    similar, ratio = [], []
    for one, two in zip(first.split(16), second.split(16), strict=True):
        pair = _floats(one, device), _floats(two, device)
        similar += ssim(*pair).tolist()
        ratio += psnr(*pair).tolist()
    return similar, ratio


def summarise(
    made: Pictures,
    dense: Pictures,
    prompts: Sequence[TaskPrompt],
    images: int,
    scorer: Scorer,
    schedule: Sequence[tuple[int, int]],
) -> dict[str, Any]:
    """One policy's numbers, JSON-able; `seeds` holds the score of each image index by itself."""
    tasks = {}
    for task in TASKS:
        by_prompt = {
            str(row): made.passed[row * images : (row + 1) * images]
            for row, prompt in enumerate(prompts)
            if prompt.task == task
        }
        if by_prompt:
            tasks[task] = task_score(by_prompt)
    score, error = overall_score(tasks.values())
    similar, ratio = likeness(made.pixels, dense.pixels, scorer.detector.device)
    side = scorer.reference_side(*made.pixels.shape[1:3])
    keep = torch.tensor(made.keep_ratio).mean(0)
    tokens = torch.tensor([height * width for height, width in schedule])[_FIRST_PRUNABLE:]
    finite = [value for value in ratio if math.isfinite(value)]
    return {
        "score": score,
        "standard_error": error,
        "difference": _difference(made, dense, prompts, images),
        "seeds": [sum(made.passed[index::images]) / len(prompts) for index in range(images)],
        "tasks": {task: value.score for task, value in tasks.items()},
        "frechet": frechet_distance(feature_statistics(made.features), scorer.references[side]),
        "ssim": sum(similar) / len(similar),
        "psnr_db": sum(finite) / len(finite) if finite else None,
        "identical": len(ratio) - len(finite),
        "token_layer_fraction": sum(made.token_layer_fraction) / len(made.token_layer_fraction),
        "prunable_fraction": float((keep[_FIRST_PRUNABLE:] * tokens).sum() / tokens.sum()),
        "keep_ratio": keep.tolist(),
        "start_scales": {
            str(scale): made.start_scale.count(scale) for scale in sorted(set(made.start_scale))
        },
        "images_per_second": made.images_per_second,
    }


def _difference(
    made: Pictures, dense: Pictures, prompts: Sequence[TaskPrompt], images: int
) -> dict[str, float | None]:
    """Overall score less dense's, with the standard error of the paired difference over prompts."""
    of_task: dict[str, list[list[float]]] = defaultdict(list)
    for row, prompt in enumerate(prompts):
        span = range(row * images, (row + 1) * images)
        of_task[prompt.task].append([float(made.passed[i]) - float(dense.passed[i]) for i in span])
    means = {task: sum(map(sum, groups)) / sum(map(len, groups)) for task, groups in of_task.items()}
    errors = [clustered_error(groups, means[task]) for task, groups in of_task.items()]
    known = [error for error in errors if error is not None]
    return {
        "score": sum(means.values()) / len(means),
        "standard_error": math.sqrt(sum(e * e for e in known)) / len(known)
        if len(known) == len(errors)
        else None,
    }


class QualityBench:
    """Measures policies against dense, each once, over the same prompts, seeds and batches."""

    def __init__(
        self,
        engine: Engine,
        scorer: Scorer,
        prompts: Sequence[TaskPrompt],
        images: int,
        *,
        batch_size: int,
        first_seed: int = 0,
    ) -> None:
        """Generate dense.

        Args:
            engine: set up; its own policy does not matter.
            scorer: on the same device.
            prompts: of the evaluation tasks.
            images: a prompt.
            batch_size: pictures a batch, the same for all, since rounding on a GPU depends on it.
            first_seed: of the first picture.
        """
        self._engine, self._scorer, self._prompts, self._images = engine, scorer, prompts, images
        self._batch_size, self._first_seed = batch_size, first_seed
        self._records: dict[str, dict[str, Any]] = {}
        self._dense = self._run(DenseSpec())

    def _run(self, policy: PolicySpec) -> Pictures:
        return run_policy(
            self._engine.with_policy(policy), self._scorer, self._prompts, self._images,
            batch_size=self._batch_size, first_seed=self._first_seed,
        )  # fmt: skip

    def _record(self, pictures: Pictures) -> dict[str, Any]:
        schedule = self._engine.schedule_of(1.0)
        return summarise(pictures, self._dense, self._prompts, self._images, self._scorer, schedule)

    def compare(self, policies: Mapping[str, PolicySpec]) -> dict[str, dict[str, Any]]:
        """Dense and the policies, by name."""
        records = {"dense": self._record(self._dense)}
        for name, policy in tqdm(policies.items(), desc="policies", disable=None):
            key = policy.model_dump_json()
            if key not in self._records:
                self._records[key] = self._record(self._run(policy)) | {
                    "policy": policy.model_dump(mode="json")
                }
            records[name] = self._records[key]
        return records


@click.command()
@click.option(
    "--comparison", "names", multiple=True, type=click.Choice(sorted(COMPARISONS)), help="All by default."
)
@click.option(
    "--prompts", type=click.IntRange(1), default=20, show_default=True, help="Held-out prompts a task."
)
@click.option("--images", type=click.IntRange(1), default=4, show_default=True, help="Pictures a prompt.")
@click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True)
@click.option("--weights", type=click.Path(path_type=Path, exists=True), help="Another training's output.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--output", type=click.Path(path_type=Path), required=True, help="The JSON file to write.")
def quality_command(
    names: tuple[str, ...],
    prompts: int,
    images: int,
    batch_size: int,
    weights: Path | None,
    device: str,
    output: Path,
) -> None:
    """Measure what each policy costs in score, likeness and time."""
    model = ModelSpec()
    if weights is not None:
        model = ModelSpec(
            transformer=str(weights / "transformer"), text_encoder=str(weights / "text_encoder")
        )
    runtime = RuntimeSpec.model_validate({"device": device, "batch_size": batch_size})
    engine = Engine(resolve(EngineSpec(model=model)), runtime)
    engine.setup()
    scorer = load_scorer(engine.device)
    wanted = [prompt for task in TASKS for prompt in task_prompts(task, prompts, "heldout")]
    record: dict[str, Any] = {"engine": engine.describe(), "prompts": len(wanted), "images": images}
    bench = QualityBench(engine, scorer, wanted, images, batch_size=batch_size)
    for name in names or tuple(COMPARISONS):
        record[name] = bench.compare(COMPARISONS[name])
        click.echo(f"{name}: {len(wanted)} prompts, {images} pictures each")
        click.echo(as_text(list(rows_of(record[name]))))
        # What is measured is kept if a later one fails.
        output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    quality_command()
