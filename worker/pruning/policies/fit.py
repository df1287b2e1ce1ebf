"""Whether the settings of a policy fit a model: the scales and layers that they name, and whether these exist.

Nothing here imports PyTorch, so the driver can check a job in no time. Scales and layers count from 0.
"""

from collections.abc import Sequence

from toprovar_batch.worker.errors import ModelSpecError
from toprovar_batch.worker.words import counted

from .specs import (
    DetailSpec,
    FastvarSpec,
    FixedExitSpec,
    PolicySpec,
    ReplaySpec,
    SkipvarSpec,
    TokenPolicyBase,
    ToprovarSpec,
)


def check_policy(spec: PolicySpec, num_scales: int, depth: int) -> None:
    """Check that the scales and layers that the settings name are there.

    Args:
        spec: the settings.
        num_scales: S of the schedule.
        depth: L, layers of the model.

    Raises:
        ModelSpecError: a setting names a scale or layer that there is not; names the field.
    """
    match spec:
        case ToprovarSpec():
            # One scale later, there must be one to prune.
            _check_scale("representative_scale", representative_scale(spec, num_scales), num_scales - 2)
        case FastvarSpec():
            _check_fastvar(spec, num_scales, depth)
        case SkipvarSpec():
            _check_scale("decision_scale", decision_scale(spec, num_scales), num_scales - 2)
            if spec.late_scales >= num_scales:
                raise ModelSpecError(
                    f"policy.late_scales: {spec.late_scales} of the {num_scales} scales leave none that always runs; "
                    f"use at most {num_scales - 1}"
                )
        case DetailSpec():
            _check_scale("first_scale", late_scales(spec, num_scales)[0], num_scales - 1)
        case FixedExitSpec(start_scale=int() as start):
            _check_scale("start_scale", start, num_scales - 1)
        case ReplaySpec():
            _check_replay(replayed_plan(spec, depth), num_scales, depth)
    unguided = first_unguided_scale(spec, num_scales)
    if unguided is not None:
        _check_scale("conditional_from", unguided, num_scales)


def scale_in_proportion(scale_of_13: int, num_scales: int) -> int:
    """The scale of a schedule that lies where a scale of the 13 of the 1M schedule does.

    A scale lies in the middle of its place: (scale + 1/2) of 13 becomes as much of `num_scales`.

    Args:
        scale_of_13: counted from 0.
        num_scales: S.

    Returns:
        Counted from 0; halves go to the even scale.
    """
    return round((scale_of_13 + 0.5) * num_scales / 13 - 0.5)


def representative_scale(spec: ToprovarSpec, num_scales: int) -> int:
    """The scale whose maps give R: the spec's, or 8 of 13 in proportion, counted from 0.

    The paper has its sixth, which is 5 of 13; `docs/quality.md` has what earlier and later ones cost.
    """
    if spec.representative_scale is not None:
        return spec.representative_scale
    return scale_in_proportion(8, num_scales)


def decision_scale(spec: SkipvarSpec, num_scales: int) -> int:
    """The scale after which is decided: the spec's, or the seventh of 13 in proportion, counted from 0."""
    return scale_in_proportion(6, num_scales) if spec.decision_scale is None else spec.decision_scale


def late_scales(spec: DetailSpec, num_scales: int) -> tuple[int, int]:
    """The first scale that may be pruned and the first without guidance: the spec's, or 9 and 8 of 13 in proportion."""
    return (
        scale_in_proportion(9, num_scales) if spec.first_scale is None else spec.first_scale,
        scale_in_proportion(8, num_scales) if spec.conditional_from is None else spec.conditional_from,
    )


def fastvar_layers(spec: FastvarSpec, depth: int) -> tuple[int, int]:
    """First and last layer that FastVAR prunes: 3 and 27 of 32, in proportion, where the spec names none."""
    first = round(3 * depth / 32) if spec.first_layer is None else spec.first_layer
    last = min(depth - 1, round(27 * depth / 32)) if spec.last_layer is None else spec.last_layer
    return first, last


def paper_2b_plan(depth: int) -> list[list[float]]:
    """What the paper's ablation times of the 2B model imply, for a model of any depth.

    In the last three scales (from 10 of 13 on) 6% of the layers, evenly spread, run whole, the others 3% of the tokens.
    """
    num_whole = max(1, round(0.06 * depth))
    whole = {int((index + 0.5) * depth / num_whole) for index in range(num_whole)}
    return [[1.0 if layer in whole else 0.03 for layer in range(depth)]] * 3


def replayed_plan(spec: ReplaySpec, depth: int) -> Sequence[Sequence[float]]:
    """Keep ratios, for each of the last scales one per layer: the spec's, or the paper's."""
    return paper_2b_plan(depth) if spec.plan is None else spec.plan


def first_unguided_scale(spec: PolicySpec, num_scales: int) -> int | None:
    """The first scale that all prompts run without guidance; None where there is none."""
    if isinstance(spec, DetailSpec):
        return late_scales(spec, num_scales)[1]
    return spec.conditional_from if isinstance(spec, TokenPolicyBase) else None


def _check_scale(field: str, scale: int, last: int) -> None:
    if scale > last:
        raise ModelSpecError(
            f"policy.{field}: scale {scale}, counted from 0, is too late in this schedule; use at most {last}"
        )


def _check_fastvar(spec: FastvarSpec, num_scales: int, depth: int) -> None:
    pruned = spec.skipped_scales + len(spec.keep_ratio)
    if pruned >= num_scales:
        raise ModelSpecError(
            f"policy.skipped_scales: with {len(spec.keep_ratio)} pruned and {spec.skipped_scales} skipped scales none "
            f"of the {num_scales} runs whole; use fewer"
        )
    first, last = fastvar_layers(spec, depth)
    for field, layer in (("first_layer", first), ("last_layer", last)):
        if layer >= depth:
            raise ModelSpecError(
                f"policy.{field}: layer {layer}, counted from 0, is beyond the model's {depth}; use at most {depth - 1}"
            )
    if first > last:
        raise ModelSpecError(f"policy.first_layer: {first} comes after last_layer, {last}; exchange them")


def _check_replay(plan: Sequence[Sequence[float]], num_scales: int, depth: int) -> None:
    if len(plan) >= num_scales:
        raise ModelSpecError(
            f"policy.plan: it is about {len(plan)} scales, the schedule has {num_scales}, the first of which must run "
            f"whole; give at most {num_scales - 1} lists"
        )
    for index, row in enumerate(plan):
        if len(row) != depth:
            raise ModelSpecError(
                f"policy.plan[{index}]: the model has {counted(depth, 'layer')}, but "
                f"{counted(len(row), 'value is', 'values are')} given"
            )
