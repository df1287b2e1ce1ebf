"""What `quality` compares: named policies, each differing from its neighbours in one thing."""

from collections.abc import Mapping
from typing import Final

from toprovar_batch.worker.pruning.policies.specs import (
    DetailSpec,
    FastvarSpec,
    FixedExitSpec,
    PolicySpec,
    SkipvarSpec,
    ToprovarSpec,
)

_AT_MOST: Final = ((0.45, 0.8), (0.5, 1.6), (0.55, 0.8), (0.55, 1.6), (0.6, 0.8), (0.6, 1.6))
"""Thresholds with the direction of the default, and a_max."""


def _ladder() -> dict[str, PolicySpec]:
    """The paper's ablation, one part of the method after the other, then our own rule."""
    return {
        "fixed exit": FixedExitSpec(),
        "scale": ToprovarSpec(layer_pruning=False, token_pruning=False),
        "scale + token": ToprovarSpec(layer_pruning=False),
        "scale + layer": ToprovarSpec(token_pruning=False),
        "scale + layer + token": ToprovarSpec(),
        "detail": DetailSpec(),
    }


def _pareto() -> dict[str, PolicySpec]:
    """Every rule from little to much pruning."""
    return {**_entropy_sweep(), **_saliency_sweep(), **_rival_sweep(), **_detail_sweep()}


def _entropy_sweep() -> dict[str, PolicySpec]:
    ours = {
        f"toprovar {threshold} a_max {most}": ToprovarSpec(depth_threshold=threshold, a_max=most)
        for threshold, most in _AT_MOST
    }
    printed = {
        f"as printed after {scale} a_max {most}": ToprovarSpec(
            threshold_direction="at_least", depth_threshold=0.5, representative_scale=scale, a_max=most
        )
        for scale, mosts in ((5, (0.8,)), (6, (0.8, 1.6)), (7, (0.8,)))
        for most in mosts
    }
    return {**ours, **printed}


def _saliency_sweep() -> dict[str, PolicySpec]:
    layer_by_layer = {
        f"{saliency} a_max {most}": ToprovarSpec.model_validate({"saliency": saliency, "a_max": most})
        for saliency in ("bit_uncertainty", "code_detail")
        for most in (0.8, 1.6)
    }
    # Tokens run in all layers or in none, and then add no codes.
    whole = {
        f"code_detail {share} of the tokens after {scale}": ToprovarSpec(
            saliency="code_detail",
            representative_scale=scale,
            scale_pruning=False,
            layer_pruning=False,
            a_min=1 - share,
            a_max=1 - share,
            restoration="identity",
            code_layer_fraction=1.0,
        )
        for scale, share in ((7, 0.5), (6, 0.25))
    }
    return {**layer_by_layer, **whole}


def _rival_sweep() -> dict[str, PolicySpec]:
    fastvar = {
        f"fastvar {keep} skip {skipped}": FastvarSpec(keep_ratio=keep, skipped_scales=skipped)
        for keep, skipped in (
            *(
                ((first, second), skipped)
                for skipped in (0, 1)
                for first, second in ((0.8, 0.7), (0.6, 0.5), (0.3, 0.2))
            ),
            ((0.6, 0.5), 2),
        )
    }
    skipvar = {
        f"skipvar {skip} {conditional}": SkipvarSpec(skip_below=skip, conditional_below=conditional)
        for skip, conditional in ((0.0, 0.1), (0.0, 0.15), (0.0, 1.0), (0.08, 1.0), (0.1, 1.0), (0.12, 1.0))
    }
    exits = {f"fixed exit at {start}": FixedExitSpec(start_scale=start) for start in (7, 8, 9)}
    return {**fastvar, **skipvar, **exits}


def _detail_sweep() -> dict[str, PolicySpec]:
    guided = {
        f"detail {threshold} guided": DetailSpec(detail_threshold=threshold, conditional_from=10)
        for threshold in (0.1, 0.2)
    }
    unguided = {
        f"detail {threshold} guided to {conditional}": DetailSpec(
            detail_threshold=threshold, conditional_from=conditional
        )
        for conditional, thresholds in (
            (8, (0.2,)),
            (7, (0.2,)),
            (6, (0.0, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)),
            (5, (0.2,)),
        )
        for threshold in thresholds
    }
    return {**guided, **unguided}


def _alternatives() -> dict[str, PolicySpec]:
    """Each choice of the method against its alternative, all else equal."""
    changes: Mapping[str, Mapping[str, object]] = {
        "default": {},
        "restoration identity": {"restoration": "identity"},
        "normalisation literal": {"normalisation": "literal"},
        "depth as printed": {"threshold_direction": "at_least", "depth_threshold": 0.5},
        "no depth: from the representative scale on": {"scale_pruning": False},
        "selection draw": {"selection": "draw"},
        "saliency bit_uncertainty": {"saliency": "bit_uncertainty"},
        "saliency code_detail": {"saliency": "code_detail"},
        "codes of tokens that ran half the layers": {"code_layer_fraction": 0.5},
        "every layer by formula": {"layer_threshold": 0.0},
        "the paper's representative scale": {"representative_scale": 4},
    }
    return {name: ToprovarSpec.model_validate(change) for name, change in changes.items()}


def _without_late_guidance() -> dict[str, PolicySpec]:
    """Every rule that chooses tokens, guided as far as `detail` is, and toprovar one scale farther."""
    toprovar = {
        f"toprovar {threshold} a_max {most} guided to {guided}": ToprovarSpec(
            depth_threshold=threshold, a_max=most, conditional_from=guided
        )
        for guided, pairs in (
            (6, ((0.45, 0.8), (0.5, 1.6), (0.5, 3.2), (0.55, 0.8), (0.55, 1.6), (0.6, 0.8), (0.6, 1.6))),
            (7, ((0.5, 3.2), (0.6, 0.8), (0.6, 1.6))),
        )
        for threshold, most in pairs
    }
    by_detail = {
        f"code_detail {threshold} a_max {most} guided to 6": ToprovarSpec(
            depth_threshold=threshold, a_max=most, conditional_from=6, saliency="code_detail"
        )
        for threshold, most in ((0.5, 1.6), (0.5, 3.2), (0.55, 1.6), (0.6, 0.8))
    }
    fastvar = {
        f"fastvar {keep} skip {skipped} guided to 6": FastvarSpec(
            keep_ratio=keep, skipped_scales=skipped, conditional_from=6
        )
        for keep, skipped in (((0.8, 0.7), 0), ((0.6, 0.5), 0), ((0.3, 0.2), 0), ((0.6, 0.5), 1))
    }
    detail = {
        f"detail {threshold} guided to 6": DetailSpec(detail_threshold=threshold, conditional_from=6)
        for threshold in (0.0, 0.1, 0.2, 0.3)
    }
    return {**toprovar, **by_detail, **fastvar, **detail}


def _directions() -> dict[str, PolicySpec]:
    """Whether few tokens of low entropy, or many, should begin the pruning; thresholds of like work."""
    settings = {"at_most": _AT_MOST, "at_least": ((0.45, 0.8), (0.5, 1.6), (0.55, 0.8), (0.6, 1.6))}
    return {
        f"{direction} {threshold} a_max {most}": ToprovarSpec.model_validate(
            {"threshold_direction": direction, "depth_threshold": threshold, "a_max": most}
        )
        for direction, pairs in settings.items()
        for threshold, most in pairs
    }


COMPARISONS: Final[Mapping[str, Mapping[str, PolicySpec]]] = {
    "ladder": _ladder(),
    "pareto": _pareto(),
    "alternatives": _alternatives(),
    "directions": _directions(),
    "unguided": _without_late_guidance(),
}
