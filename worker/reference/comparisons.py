"""What `quality` compares: named policies, each differing from its neighbours in one thing."""

from collections.abc import Mapping
from typing import Final

from toprovar_batch.worker.pruning.specs import (
    DetailSpec,
    FastvarSpec,
    FixedExitSpec,
    PolicySpec,
    SkipvarSpec,
    ToprovarSpec,
)


def _ladder() -> dict[str, PolicySpec]:
    """The paper's ablation: one part of the method after the other."""
    return {
        "fixed exit": FixedExitSpec(),
        "scale": ToprovarSpec(layer_pruning=False, token_pruning=False),
        "scale + token": ToprovarSpec(layer_pruning=False),
        "scale + layer": ToprovarSpec(token_pruning=False),
        "scale + layer + token": ToprovarSpec(),
    }


def _pareto() -> dict[str, PolicySpec]:
    """Every rule from little to much pruning."""
    return {**_entropy_sweep(), **_saliency_sweep(), **_rival_sweep(), **_detail_sweep()}


def _entropy_sweep() -> dict[str, PolicySpec]:
    return {
        f"toprovar tau {threshold} a_max {most}": ToprovarSpec(depth_threshold=threshold, a_max=most)
        for threshold in (0.45, 0.5, 0.55)
        for most in (0.4, 0.8, 1.2, 1.6)
    }


def _saliency_sweep() -> dict[str, PolicySpec]:
    return {
        f"{saliency} a_max {most}": ToprovarSpec.model_validate({"saliency": saliency, "a_max": most})
        for saliency in ("bit_uncertainty", "code_detail")
        for most in (0.4, 0.8, 1.2, 1.6)
    }


def _rival_sweep() -> dict[str, PolicySpec]:
    fastvar = {
        f"fastvar {keep} skip {skipped}": FastvarSpec(keep_ratio=keep, skipped_scales=skipped)
        for skipped in (0, 1, 2)
        for keep in ((0.8, 0.7), (0.6, 0.5), (0.3, 0.2))
    }
    skipvar = {
        f"skipvar {skip} {conditional}": SkipvarSpec(skip_below=skip, conditional_below=conditional)
        for skip, conditional in ((0.0, 0.1), (0.0, 0.3), (0.05, 0.2), (0.1, 0.3), (0.2, 0.4), (0.3, 1.0))
    }
    exits = {f"fixed exit at {start}": FixedExitSpec(start_scale=start) for start in (6, 7, 8, 9)}
    return {**fastvar, **skipvar, **exits}


def _detail_sweep() -> dict[str, PolicySpec]:
    together = {
        f"detail {threshold} from {first}": DetailSpec(
            detail_threshold=threshold, first_scale=first, conditional_from=first
        )
        for first in (8, 7, 6)
        for threshold in (0.0, 0.1, 0.2, 0.35, 0.6)
    }
    apart = {
        f"detail {threshold} from {first}, guidance to {conditional}": DetailSpec(
            detail_threshold=threshold, first_scale=first, conditional_from=conditional
        )
        for first, conditional in ((8, 7), (8, 6), (7, 6), (7, 10))
        for threshold in (0.1, 0.2)
    }
    return {**together, **apart}


def _alternatives() -> dict[str, PolicySpec]:
    """Each choice of the method against its alternative, all else equal."""
    return {
        "default": ToprovarSpec(),
        "restoration identity": ToprovarSpec(restoration="identity"),
        "normalisation literal": ToprovarSpec(normalisation="literal"),
        "threshold at most": ToprovarSpec(threshold_direction="at_most"),
        "selection draw": ToprovarSpec(selection="draw"),
        "saliency bit_uncertainty": ToprovarSpec(saliency="bit_uncertainty"),
        "saliency code_detail": ToprovarSpec(saliency="code_detail"),
        "codes of tokens that ran half the layers": ToprovarSpec(code_layer_fraction=0.5),
        "every layer by formula": ToprovarSpec(layer_threshold=0.0),
    }


COMPARISONS: Final[Mapping[str, Mapping[str, PolicySpec]]] = {
    "ladder": _ladder(),
    "pareto": _pareto(),
    "alternatives": _alternatives(),
}
