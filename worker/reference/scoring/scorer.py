"""The detector with everything that belongs to it, in one file: weights, threshold, and what renders look like to it."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from toprovar_batch.worker.errors import CheckpointError
from toprovar_batch.worker.infinity.checkpoint import fit_state, load_into, read_state_dict
from toprovar_batch.worker.reference.scenes.vocab import COLOUR_NAMES, SHAPE_NAMES
from toprovar_batch.worker.whole_file import whole_file

from .detector import NUM_FEATURES, Detector
from .image_metrics import FeatureStatistics

SCORER_FILE: Final = Path(__file__).parents[1] / "scorer.safetensors"
_REFERENCE: Final = "reference."


@dataclass(frozen=True)
class Scorer:
    """A detector, and the statistics of its features on held-out renders.

    Attributes:
        detector: reads pictures.
        references: side of square renders in pixels -> statistics of their features.
        record: how the detector was trained and how often it is right, JSON-able.
    """

    detector: Detector
    references: Mapping[int, FeatureStatistics]
    record: Mapping[str, Any]

    def reference_side(self, height: int, width: int) -> int:
        """Side of the reference renders that are nearest in size to pictures of height x width pixels."""
        return min(self.references, key=lambda side: abs(math.log(side * side / (height * width))))


def save_scorer(scorer: Scorer, path: Path) -> None:
    """Write a scorer as one safetensors file, weights in bfloat16, published in one step."""
    state = {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in scorer.detector.state_dict().items()
    }
    for side, statistics in scorer.references.items():
        state[f"{_REFERENCE}{side}.count"] = torch.tensor([statistics.count], dtype=torch.float32)
        state[f"{_REFERENCE}{side}.mean"] = statistics.mean.float()
        state[f"{_REFERENCE}{side}.covariance"] = statistics.covariance.float()
    metadata = {
        "min_score": repr(scorer.detector.min_score),
        "shapes": json.dumps(SHAPE_NAMES),
        "colours": json.dumps(COLOUR_NAMES),
        "record": json.dumps(dict(scorer.record)),
    }
    with whole_file(path) as aside:
        save_file(state, aside, metadata)


def load_scorer(device: torch.device, path: Path = SCORER_FILE) -> Scorer:
    """Read a scorer; its detector computes in float32.

    Raises:
        CheckpointError: the file is missing, damaged, or of another vocabulary or network.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path}: the scorer's weights are missing; train them with "
            f"`python -m toprovar_batch.worker.reference.train detector --output {path}`"
        )
    state = read_state_dict(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    try:
        min_score, record = float(metadata["min_score"]), json.loads(metadata["record"])
        names = json.loads(metadata["shapes"]), json.loads(metadata["colours"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: not a scorer's file; train one with the detector stage") from error
    if names != (list(SHAPE_NAMES), list(COLOUR_NAMES)):
        raise CheckpointError(
            f"{path}: made for other shapes or colours than the scenes have; train it again"
        )
    references = _references(state, path)
    with torch.device("meta"):
        detector = Detector(min_score)
    weights = {name: tensor for name, tensor in state.items() if not name.startswith(_REFERENCE)}
    fitted = fit_state(detector, weights, source=str(path))
    load_into(detector, fitted, device, lambda _name: torch.float32, source=str(path))
    return Scorer(detector.eval().requires_grad_(False), references, record)


def _references(state: Mapping[str, Tensor], path: Path) -> dict[int, FeatureStatistics]:
    sides = {int(name.split(".")[1]) for name in state if name.startswith(_REFERENCE)}
    if not sides:
        raise CheckpointError(f"{path}: holds no reference statistics; train the detector again")
    found = {}
    for side in sorted(sides):
        parts = [state.get(f"{_REFERENCE}{side}.{name}") for name in ("count", "mean", "covariance")]
        shapes = [None if part is None else tuple(part.shape) for part in parts]
        if shapes != [(1,), (NUM_FEATURES,), (NUM_FEATURES, NUM_FEATURES)]:
            raise CheckpointError(
                f"{path}: {_REFERENCE}{side} is not the statistics of {NUM_FEATURES} features"
            )
        count, mean, covariance = (part.double() for part in parts if part is not None)
        found[side] = FeatureStatistics(int(count.item()), mean, covariance)
    return found
