"""What `quality` compares: named policies, each differing from its neighbours in one thing."""

from collections.abc import Mapping
from typing import Final

from toprovar_batch.worker.pruning.specs import (
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
    found: dict[str, PolicySpec] = {}
    for threshold in (0.45, 0.5, 0.55):
        for most in (0.4, 0.8, 1.2, 1.6):
            found[f"toprovar tau {threshold} a_max {most}"] = ToprovarSpec(
                depth_threshold=threshold, a_max=most
            )
    for saliency in ("bit_uncertainty", "code_detail"):
        for most in (0.4, 0.8, 1.2, 1.6):
            found[f"{saliency} a_max {most}"] = ToprovarSpec.model_validate(
                {"saliency": saliency, "a_max": most}
            )
    for skipped in (0, 1, 2):
        for keep in ((0.8, 0.7), (0.6, 0.5), (0.3, 0.2)):
            found[f"fastvar {keep} skip {skipped}"] = FastvarSpec(keep_ratio=keep, skipped_scales=skipped)
    for skip, conditional in ((0.0, 0.1), (0.0, 0.3), (0.05, 0.2), (0.1, 0.3), (0.2, 0.4), (0.3, 1.0)):
        found[f"skipvar {skip} {conditional}"] = SkipvarSpec(skip_below=skip, conditional_below=conditional)
    for start in (6, 7, 8, 9):
        found[f"fixed exit at {start}"] = FixedExitSpec(start_scale=start)
    return found


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
