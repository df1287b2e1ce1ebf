"""What pruning costs and saves on the reference model: policies side by side, over the same prompts and seeds.

`python -m toprovar_batch.worker.reference.quality --output quality.json` measures every comparison of `comparisons.py`.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import torch
from torch import Tensor
from tqdm import tqdm

from toprovar_batch.worker.generator import Generator, generate_all
from toprovar_batch.worker.image_statistics import ImageStatistics
from toprovar_batch.worker.pruning.policies.specs import DenseSpec, PolicySpec
from toprovar_batch.worker.request import GenerationRequest
from toprovar_batch.worker.resolved import resolve
from toprovar_batch.worker.specs import EngineSpec, ModelSpec, RuntimeSpec
from toprovar_batch.worker.whole_file import write_whole

from .quality_tables import as_text, rows_of
from .scenes import TaskPrompt, task_prompts
from .scenes.vocab import TASKS
from .scoring.image_metrics import feature_statistics, frechet_distance, psnr, ssim
from .scoring.judging import Judged, as_floats, judge_made, score_difference, task_scores
from .scoring.scorer import Scorer, load_scorer
from .scoring.verdict import overall_score
from .studies.comparisons import COMPARISONS

_FIRST_PRUNABLE: Final = 5
"""Of the ten scales at 512 x 512, those after the paper's representative one (its sixth of 13, in proportion)."""


@dataclass(frozen=True)
class Pictures:
    """Everything one policy made.

    Attributes:
        judged: by sample id, in the order of the requests.
        features: [n, F] of the scorer's detector.
        pixels: [n, H, W, 3] uint8 RGB on the CPU.
        statistics: of each picture.
        images_per_second: of the transformer and sampling. The first batch of each size warms up and does not count;
            None where there are no others.
    """

    judged: dict[str, Judged]
    features: Tensor
    pixels: Tensor
    statistics: list[ImageStatistics]
    images_per_second: float | None

    @property
    def passed(self) -> list[bool]:
        """For each request whether its picture shows what was asked for."""
        return [each.verdict.passed for each in self.judged.values()]


def requests_of(prompts: Sequence[TaskPrompt], images: int, first_seed: int) -> list[GenerationRequest]:
    """`images` requests a prompt, prompt after prompt; no two share a seed."""
    return [
        GenerationRequest(f"{row}-{image}", prompt.text, None, first_seed + row * images + image)
        for row, prompt in enumerate(prompts)
        for image in range(images)
    ]


def run_policy(
    generator: Generator,
    scorer: Scorer,
    prompts: Sequence[TaskPrompt],
    images: int,
    *,
    batch_size: int,
    first_seed: int,
) -> Pictures:
    """Generate all prompts and let the detector read the pictures.

    Args:
        generator: set up, with the policy.
        scorer: on the same device.
        prompts: each with what its picture must show.
        images: a prompt.
        batch_size: pictures per batch.
        first_seed: of the first picture; the others count on.
    """
    wanted = [prompt for prompt in prompts for _ in range(images)]
    judged: dict[str, Judged] = {}
    features, pixels = [], []
    statistics: list[ImageStatistics] = []
    speeds: list[tuple[int, float]] = []
    for batch, made in generate_all(generator, requests_of(prompts, images, first_seed), batch_size):
        speeds.append((len(batch), made.times.sample))
        pixels.append(torch.from_numpy(made.pixels))
        expected = wanted[len(judged) : len(judged) + len(batch)]
        found = judge_made(scorer, made, expected)
        for request, prompt, verdict in zip(batch, expected, found.verdicts, strict=True):
            judged[request.sample_id] = Judged(prompt.task, prompt.text, verdict)
        features.append(found.features)
        statistics += made.statistics
    return Pictures(judged, torch.cat(features), torch.cat(pixels), statistics, warm_speed(speeds))


def warm_speed(speeds: Sequence[tuple[int, float]]) -> float | None:
    """Pictures per second of (pictures, seconds) batches but the first of each size; None where that leaves none."""
    sizes = [count for count, _ in speeds]
    warm = [speed for index, speed in enumerate(speeds) if sizes.index(speed[0]) < index]
    if not warm:
        return None
    return sum(count for count, _ in warm) / sum(seconds for _, seconds in warm)


def likeness(first: Tensor, second: Tensor, device: torch.device) -> tuple[list[float], list[float]]:
    """SSIM and PSNR (dB) of pairs of pictures, [n, H, W, 3] uint8 each."""
    similar, ratio = [], []
    for one, two in zip(first.split(16), second.split(16), strict=True):
        pair = as_floats(one, device), as_floats(two, device)
        similar += ssim(*pair).tolist()
        ratio += psnr(*pair).tolist()
    return similar, ratio


def summarise(
    made: Pictures,
    dense: Pictures,
    images: int,
    scorer: Scorer,
    schedule: Sequence[tuple[int, int]],
) -> dict[str, Any]:
    """One policy's numbers, JSON-able; `seeds` holds the score of each image index by itself."""
    tasks = task_scores(made.judged.values())
    score, error = overall_score(tasks.values())
    difference = score_difference(made.judged, dense.judged)["overall"]
    similar, ratio = likeness(made.pixels, dense.pixels, scorer.detector.device)
    side = scorer.reference_side(*made.pixels.shape[1:3])
    keep = torch.tensor([each.keep_ratio for each in made.statistics]).mean(0)
    tokens = torch.tensor([height * width for height, width in schedule])[_FIRST_PRUNABLE:]
    finite = [value for value in ratio if math.isfinite(value)]
    fractions = [each.token_layer_fraction or 0.0 for each in made.statistics]
    starts = Counter(each.pruning_start_scale for each in made.statistics)
    return {
        "score": score,
        "standard_error": error,
        "difference": {name: difference[name] for name in ("score", "standard_error")},
        "seeds": [sum(made.passed[index::images]) / (len(made.passed) // images) for index in range(images)],
        "tasks": {task: value.score for task, value in tasks.items()},
        "frechet": frechet_distance(feature_statistics(made.features), scorer.references[side]),
        "ssim": sum(similar) / len(similar),
        "psnr_db": sum(finite) / len(finite) if finite else None,
        "identical": len(ratio) - len(finite),
        "token_layer_fraction": sum(fractions) / len(fractions),
        "prunable_fraction": float((keep[_FIRST_PRUNABLE:] * tokens).sum() / tokens.sum()),
        "keep_ratio": keep.tolist(),
        "start_scales": {str(scale): count for scale, count in sorted(starts.items())},
        "images_per_second": made.images_per_second,
    }


class QualityBench:
    """Measures policies against dense, each once, over the same prompts, seeds and batches."""

    def __init__(
        self,
        generator: Generator,
        scorer: Scorer,
        prompts: Sequence[TaskPrompt],
        images: int,
        *,
        batch_size: int,
        first_seed: int = 0,
    ) -> None:
        """Generate dense.

        Args:
            generator: set up; its own policy does not matter.
            scorer: on the same device.
            prompts: of the evaluation tasks.
            images: a prompt.
            batch_size: pictures per batch, the same for all, since rounding on a GPU depends on it.
            first_seed: of the first picture.
        """
        self._generator, self._scorer, self._prompts, self._images = generator, scorer, prompts, images
        self._batch_size, self._first_seed = batch_size, first_seed
        self._records: dict[str, dict[str, Any]] = {}
        self._dense = self._run(DenseSpec())

    def _run(self, policy: PolicySpec) -> Pictures:
        return run_policy(
            self._generator.with_policy(policy), self._scorer, self._prompts, self._images,
            batch_size=self._batch_size, first_seed=self._first_seed,
        )  # fmt: skip

    def _record(self, pictures: Pictures) -> dict[str, Any]:
        schedule = self._generator.spec.schedule_of(1.0)
        return summarise(pictures, self._dense, self._images, self._scorer, schedule)

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
    "--prompts", type=click.IntRange(1), default=20, show_default=True, help="Held-out prompts per task."
)
@click.option("--images", type=click.IntRange(1), default=4, show_default=True, help="Pictures per prompt.")
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
    generator = Generator(resolve(EngineSpec(model=model)), runtime)
    generator.setup()
    scorer = load_scorer(generator.device)
    wanted = [prompt for task in TASKS for prompt in task_prompts(task, prompts, "heldout")]
    record: dict[str, Any] = {"engine": generator.describe(), "prompts": len(wanted), "images": images}
    bench = QualityBench(generator, scorer, wanted, images, batch_size=batch_size)
    for name in names or tuple(COMPARISONS):
        record[name] = bench.compare(COMPARISONS[name])
        click.echo(f"{name}: {len(wanted)} prompts, {images} pictures each")
        click.echo(as_text(list(rows_of(record[name]))))
        # What is measured is kept if a later one fails.
        write_whole(output, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    quality_command()
