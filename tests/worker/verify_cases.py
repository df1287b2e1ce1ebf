"""Recorded vectors of the official implementation on the Triton backend, in float32.

On a GPU as compiled, elsewhere in Triton's interpreter. Not collected by name, see `residual_cases`.
"""

from pathlib import Path

import pytest
import torch

from toprovar_batch.kernels.ops import Backend
from toprovar_batch.worker.verify import read_case, verify_case

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GOLDEN = Path(__file__).parents[1] / "data" / "golden"


@pytest.mark.parametrize("name", ["square", "patchify"])
def test_the_kernels_agree_with_recorded_vectors(name):
    report = verify_case(read_case(GOLDEN / name).on(DEVICE), DEVICE, Backend("triton", "for this test"))
    assert report.passed, report
