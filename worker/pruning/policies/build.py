"""From a policy's settings to the policy of a batch, checked against the model and its scales."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from toprovar_batch.worker.errors import ModelSpecError
from toprovar_batch.worker.words import counted

from .base import BatchContext, PruningPolicy
from .dense import DensePolicy, FixedExitPolicy
from .detail import DetailPolicy, late_scales
from .fastvar import FastvarPolicy, fastvar_layers
from .replay import ReplayPolicy, paper_2b_plan
from .skipvar import SkipvarPolicy, decision_scale
from .specs import (
    DenseSpec,
    DetailSpec,
    FastvarSpec,
    FixedExitSpec,
    PolicySpec,
    ReplaySpec,
    SkipvarSpec,
    TokenPolicyBase,
    ToprovarSpec,
)
from .toprovar import ToprovarPolicy, representative_scale

PolicyFactory = Callable[[BatchContext], PruningPolicy]


def policy_factory(spec: PolicySpec, num_scales: int, depth: int) -> PolicyFactory:
    """What makes the policy of each batch.

    Args:
        spec: the settings.
        num_scales: S of the schedule.
        depth: L, layers of the model.

    Raises:
        ModelSpecError: a setting names a scale or layer that there is not; names the field.
    """
    make = _checked(spec, num_scales, depth)
    unguided = first_unguided_scale(spec, num_scales)
    if unguided is None:
        return make
    _check_scale("conditional_from", unguided, num_scales)
    return lambda context: make(replace(context, conditional_from=unguided))


def first_unguided_scale(spec: PolicySpec, num_scales: int) -> int | None:
    """The first scale that all prompts run without guidance; None where there is none."""
    if isinstance(spec, DetailSpec):
        return late_scales(spec, num_scales)[1]
    return spec.conditional_from if isinstance(spec, TokenPolicyBase) else None


def _checked(spec: PolicySpec, num_scales: int, depth: int) -> PolicyFactory:
    make: PolicyFactory
    match spec:
        case DenseSpec():
            make = DensePolicy
        case ToprovarSpec():
            # One scale later, there must be one to prune.
            _check_scale("representative_scale", representative_scale(spec, num_scales), num_scales - 2)
            make = partial(ToprovarPolicy, spec)
        case FastvarSpec():
            _check_fastvar(spec, num_scales, depth)
            make = partial(FastvarPolicy, spec)
        case SkipvarSpec():
            _check_scale("decision_scale", decision_scale(spec, num_scales), num_scales - 2)
            if spec.late_scales >= num_scales:
                raise ModelSpecError(
                    f"policy.late_scales: {spec.late_scales} of the {num_scales} scales leave none that always runs; "
                    f"use at most {num_scales - 1}"
                )
            make = partial(SkipvarPolicy, spec)
        case DetailSpec():
            _check_scale("first_scale", late_scales(spec, num_scales)[0], num_scales - 1)
            make = partial(DetailPolicy, spec)
        case FixedExitSpec():
            if spec.start_scale is not None:
                _check_scale("start_scale", spec.start_scale, num_scales - 1)
            make = partial(FixedExitPolicy, spec)
        case ReplaySpec():
            plan = paper_2b_plan(depth) if spec.plan is None else spec.plan
            _check_replay(plan, num_scales, depth)
            make = partial(ReplayPolicy, plan, spec.restoration)
    return make


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
                f"policy.plan[{index}]: the model has {counted(depth, 'layer')}, but {counted(len(row), 'value is', 'values are')} given"
            )
