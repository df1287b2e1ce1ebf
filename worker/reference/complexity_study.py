"""Does what the model measures of a picture tell how complex it is? Statistics of every scale against known complexity.

`python -m toprovar_batch.worker.reference.complexity_study --output complexity.json` draws held-out free scenes dense. A
scene's complexity is known from its content; since a caption leaves things open, the finished picture has one of its own
too: the mean size of its luma's steps from pixel to pixel. Then, how the depth and the work that adaptive policies choose
go with both.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click
import torch
from torch import Tensor

from toprovar_batch.worker.batching import plan_batches
from toprovar_batch.worker.generator import Generator
from toprovar_batch.worker.pruning.calibration import RecordingPolicy
from toprovar_batch.worker.pruning.plan import ScalePlan
from toprovar_batch.worker.pruning.policies.base import BatchContext
from toprovar_batch.worker.pruning.policies.build import policy_factory
from toprovar_batch.worker.pruning.policies.specs import DetailSpec, PolicySpec, SkipvarSpec, ToprovarSpec
from toprovar_batch.worker.pruning.saliency import bit_certainty
from toprovar_batch.worker.request import GenerationRequest
from toprovar_batch.worker.resolved import resolve
from toprovar_batch.worker.specs import EngineSpec, ModelSpec, RuntimeSpec
from toprovar_batch.worker.whole_file import write_whole

from .scenes import make_batch

_SEED: Final = 4_711
_SCALES_ALONE: Final = {"layer_pruning": False, "token_pruning": False}
ADAPTIVE: Final[Mapping[str, PolicySpec]] = {
    f"toprovar {direction} {threshold}": ToprovarSpec.model_validate(
        {"threshold_direction": direction, "depth_threshold": threshold, **_SCALES_ALONE}
    )
    for direction in ("at_least", "at_most")
    for threshold in (0.4, 0.45, 0.5, 0.55, 0.6)
} | {"skipvar": SkipvarSpec(), "detail": DetailSpec()}
_LUMA: Final = (0.299, 0.587, 0.114)


class _Watching(RecordingPolicy):
    """Also records how uncertain the bits were, and how much each scale changed the sum of codes."""

    def __init__(self, context: BatchContext, *, guided: bool) -> None:
        super().__init__(context, guided=guided)
        self.bit_entropy: list[Tensor] = []
        self.change: list[Tensor] = []
        self._codes: Tensor | None = None

    def plan(self, scale_index: int) -> ScalePlan:
        """All of it, with everything observed."""
        return replace(super().plan(scale_index), observe_logits=True, observe_codes=True)

    def observe_scale(
        self,
        scale_index: int,  # noqa: ARG002 - in order
        logits: Tensor | None,
        summed_codes: Tensor | None,
        prompts: Sequence[int],  # noqa: ARG002 - all of them
    ) -> None:
        """Take a finished scale."""
        assert logits is not None
        assert summed_codes is not None
        before = torch.zeros_like(summed_codes) if self._codes is None else self._codes
        self.bit_entropy.append(1 - bit_certainty(logits).mean(1).cpu())
        self.change.append((summed_codes - before).square().mean((1, 2, 3)).cpu())
        self._codes = summed_codes.clone()


def statistics_of(policy: _Watching) -> dict[str, Tensor]:
    """Name -> [S, B]: what a batch's scales show."""
    recording = policy.recording
    seen = torch.tensor([height * width for height, width in recording.schedule]).cumsum(0)
    entropy = torch.stack([maps.mean((0, 2)) for maps in recording.maps])
    return {
        "low_entropy_ratio": recording.low_entropy_ratios().nan_to_num(0.0),  # NaN: all tokens are equal
        "attn_entropy": entropy / seen.clamp_min(2).log()[:, None],
        "bit_entropy": torch.stack(policy.bit_entropy),
        "change": torch.stack(policy.change),
    }


def roughness(pixels: Tensor) -> Tensor:
    """[B, H, W, 3] uint8 to [B] float32: mean absolute step of the luma between neighbours, of 255."""
    luma = (pixels.float() * torch.tensor(_LUMA)).sum(-1)
    return luma.diff(dim=1).abs().mean((1, 2)) + luma.diff(dim=2).abs().mean((1, 2))


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rho; equal values share their mean rank, and a constant correlates with nothing (NaN)."""
    ranks = torch.stack([_ranks(torch.tensor(values, dtype=torch.float64)) for values in (first, second)])
    return float(torch.corrcoef(ranks)[0, 1])


def _ranks(values: Tensor) -> Tensor:
    _, places, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[places]


def study(generator: Generator, scenes: int, batch_size: int) -> dict[str, Any]:
    """Draw held-out free scenes and correlate.

    Args:
        generator: set up.
        scenes: how many.
        batch_size: pictures per batch.

    Returns:
        `complexity` and `roughness` of each scene, `statistics` (name -> [S][n]), `correlation` (name -> scale ->
        with complexity, with roughness), and `adaptive` (policy -> `start_scale` and `token_layer_fraction` of each
        scene, and their correlations), JSON-able; None where there is no number.
    """
    batch = make_batch(_SEED, 0, scenes, "heldout")
    requests = [
        GenerationRequest(str(row), caption, None, seed=row) for row, caption in enumerate(batch.captions)
    ]
    found: dict[str, list[Tensor]] = {}
    rough: list[float] = []
    for part in plan_batches(requests, batch_size):
        policies: list[_Watching] = []

        def watch(context: BatchContext, made: list[_Watching] = policies) -> _Watching:
            made.append(_Watching(context, guided=generator.spec.settings.guided))
            return made[-1]

        runner = generator.observe(part, watch)
        for name, values in statistics_of(policies[0]).items():
            found.setdefault(name, []).append(values)
        rough += roughness(torch.from_numpy(generator.decode(runner))).tolist()
    statistics = {name: torch.cat(parts, dim=1).double().tolist() for name, parts in found.items()}
    targets = {"complexity": list(batch.complexity), "roughness": rough}
    return {
        **targets,
        "statistics": {name: [_known(values) for values in scales] for name, scales in statistics.items()},
        "correlation": _correlations(statistics, targets),
        "adaptive": {
            name: _adaptive(generator, spec, requests, batch_size, targets) for name, spec in ADAPTIVE.items()
        },
    }


def _adaptive(
    generator: Generator,
    spec: PolicySpec,
    requests: Sequence[GenerationRequest],
    batch_size: int,
    targets: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
    """What a policy chooses for each request, and how that goes with the targets."""
    factory = policy_factory(spec, generator.spec.num_scales, generator.spec.model.transformer.depth)
    chosen: dict[str, list[float]] = {"start_scale": [], "token_layer_fraction": []}
    for part in plan_batches(requests, batch_size):
        history = generator.observe(part, factory).history
        for work in map(history.work, range(len(part))):
            chosen["start_scale"].append(work.pruning_start_scale)
            chosen["token_layer_fraction"].append(work.token_layer_fraction)
    correlation = {
        name: row for name, (row,) in _correlations({k: [v] for k, v in chosen.items()}, targets).items()
    }
    return {**chosen, "correlation": correlation}


def _known(values: Sequence[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]


def _correlations(
    statistics: Mapping[str, Sequence[Sequence[float]]], targets: Mapping[str, Sequence[float]]
) -> dict[str, list[dict[str, float | None]]]:
    return {
        name: [
            dict(
                zip(
                    targets,
                    _known([rank_correlation(values, known) for known in targets.values()]),
                    strict=True,
                )
            )
            for values in scales
        ]
        for name, scales in statistics.items()
    }


@click.command()
@click.option("--scenes", type=click.IntRange(4), default=400, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True)
@click.option("--weights", type=click.Path(path_type=Path, exists=True), help="Another training's output.")
@click.option("--output", type=click.Path(path_type=Path), required=True, help="The JSON file to write.")
def complexity_command(scenes: int, batch_size: int, weights: Path | None, output: Path) -> None:
    """Correlate what each scale shows with how complex the scene is."""
    model = ModelSpec()
    if weights is not None:
        model = ModelSpec(
            transformer=str(weights / "transformer"), text_encoder=str(weights / "text_encoder")
        )
    generator = Generator(resolve(EngineSpec(model=model)), RuntimeSpec(batch_size=batch_size))
    generator.setup()
    record = study(generator, scenes, batch_size)
    write_whole(output, json.dumps({"engine": generator.describe()} | record, indent=1) + "\n")
    own = rank_correlation(record["complexity"], record["roughness"])
    click.echo(f"{scenes} scenes; complexity with the picture's roughness: {own:+.2f}")
    click.echo("rank correlation of each scale's statistic with complexity / with roughness:")
    for name, scales in record["correlation"].items():
        shown = "  ".join(map(_pair, scales))
        click.echo(f"{name:<18} {shown}")
    click.echo("the same of what policies choose:")
    for name, chosen in record["adaptive"].items():
        shown = "  ".join(f"{of} {_pair(row)}" for of, row in chosen["correlation"].items())
        work = sum(chosen["token_layer_fraction"]) / scenes
        click.echo(f"{name:<24} mean work {work:5.1%}  {shown}")


def _pair(row: Mapping[str, float | None]) -> str:
    return "/".join("-" if value is None else f"{value:+.2f}" for value in row.values())


if __name__ == "__main__":
    complexity_command()
