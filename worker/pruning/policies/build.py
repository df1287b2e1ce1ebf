"""From a policy's settings to the policy of a batch, checked against the model and its scales."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from .base import BatchContext, PruningPolicy
from .dense import DensePolicy, FixedExitPolicy
from .detail import DetailPolicy
from .fastvar import FastvarPolicy
from .fit import check_policy, first_unguided_scale, replayed_plan
from .replay import ReplayPolicy
from .skipvar import SkipvarPolicy
from .specs import (
    DenseSpec,
    DetailSpec,
    FastvarSpec,
    FixedExitSpec,
    PolicySpec,
    ReplaySpec,
    SkipvarSpec,
    ToprovarSpec,
)
from .toprovar import ToprovarPolicy

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
    check_policy(spec, num_scales, depth)
    make = _maker(spec, depth)
    unguided = first_unguided_scale(spec, num_scales)
    if unguided is None:
        return make
    return lambda context: make(replace(context, conditional_from=unguided))


def _maker(spec: PolicySpec, depth: int) -> PolicyFactory:
    make: PolicyFactory
    match spec:
        case DenseSpec():
            make = DensePolicy
        case ToprovarSpec():
            make = partial(ToprovarPolicy, spec)
        case FastvarSpec():
            make = partial(FastvarPolicy, spec)
        case SkipvarSpec():
            make = partial(SkipvarPolicy, spec)
        case DetailSpec():
            make = partial(DetailPolicy, spec)
        case FixedExitSpec():
            make = partial(FixedExitPolicy, spec)
        case ReplaySpec():
            make = partial(ReplayPolicy, replayed_plan(spec, depth), spec.restoration)
    return make
