"""Normalised, rotated queries and keys against a float64 loop over pairs."""

import math
from pathlib import Path

import pytest
import torch

from toprovar_batch.kernels.layout import TokenLayout
from toprovar_batch.kernels.qk_norm_rope import qk_norm_rope, qk_norm_rope_append

CPU = torch.device("cpu")


def _exact(x, factor, angle):
    unit = x / max(x.norm().item(), 1e-12) * factor
    out = unit.clone()
    for pair, turn in enumerate(angle.tolist()):
        a, b = unit[2 * pair].item(), unit[2 * pair + 1].item()
        out[2 * pair] = a * math.cos(turn) - b * math.sin(turn)
        out[2 * pair + 1] = a * math.sin(turn) + b * math.cos(turn)
    return out


@pytest.mark.parametrize(("heads", "head_dim"), [(1, 32), (3, 96), (2, 128)])
@pytest.mark.parametrize("kept", [None, [[4, 0], [], [2, 3, 1]]])
def test_agrees_with_a_loop_over_pairs(heads, head_dim, kept):
    places = 5
    angles = torch.randn(places, head_dim // 2, dtype=torch.float64) * 3
    rotation = torch.polar(torch.ones_like(angles), angles).to(torch.complex64)
    if kept is None:
        layout = TokenLayout.dense(2, places, CPU)
        place_of = list(range(places)) * 2
    else:
        layout = TokenLayout.ragged([torch.tensor(row, dtype=torch.int64) for row in kept], CPU)
        place_of = [place for row in kept for place in row]
    qkv = torch.randn(layout.num_tokens, 3, heads, head_dim)
    qkv[0, 0, 0] = 0  # a zero vector stays zero
    q_scale = torch.linspace(0.5, 90, heads)
    q, k = qk_norm_rope(qkv, q_scale, rotation, layout)
    for token, place in enumerate(place_of):
        for head in range(heads):
            exact_q = _exact(qkv[token, 0, head].double(), q_scale[head].item(), angles[place])
            exact_k = _exact(qkv[token, 1, head].double(), 1.0, angles[place])
            assert torch.allclose(q[token, head].double(), exact_q, rtol=1e-5, atol=1e-5)
            assert torch.allclose(k[token, head].double(), exact_k, atol=1e-6)


def test_result_has_the_dtype_of_its_input():
    layout = TokenLayout.dense(1, 1, CPU)
    qkv = torch.randn(1, 3, 1, 8, dtype=torch.bfloat16)
    q, k = qk_norm_rope(qkv, torch.ones(1), torch.ones(1, 4, dtype=torch.complex64), layout)
    assert q.dtype == k.dtype == torch.bfloat16


@pytest.mark.parametrize("kept", [None, [[4, 0, 1, 2, 3], [0, 4, 2, 1, 3]], [[4, 0], [], [2, 3, 1]]])
@pytest.mark.parametrize("starts", [(2, 2, 2), (0, 3, 1)])
def test_keys_and_values_go_behind_the_earlier_ones_of_their_row(kept, starts):
    if kept is None:
        layout = TokenLayout.dense(3, 5, CPU)
    else:
        layout = TokenLayout.ragged([torch.tensor(row, dtype=torch.int64) for row in kept], CPU)
    starts = starts[: layout.num_rows]
    angles = torch.randn(5, 4)
    rotation = torch.polar(torch.ones_like(angles), angles)
    qkv, q_scale = torch.randn(layout.num_tokens, 3, 2, 8), torch.tensor([0.5, 3.0])
    caches = torch.full((2, layout.num_rows, 2, 9, 8), math.nan)
    q, k = qk_norm_rope(qkv, q_scale, rotation, layout)
    assert torch.equal(qk_norm_rope_append(qkv, q_scale, rotation, layout, starts, *caches), q)
    expected = torch.full_like(caches, math.nan)
    for row, part in enumerate(layout.row_slices):
        slots = slice(starts[row], starts[row] + layout.row_lengths[row])
        expected[0, row, :, slots] = k[part].transpose(0, 1)
        expected[1, row, :, slots] = qkv[part, 2].transpose(0, 1)
    assert torch.equal(caches.nan_to_num(7.0), expected.nan_to_num(7.0))


@pytest.mark.slow
def test_the_kernel_passes_its_cases(run_cases):
    pytest.importorskip("triton")
    assert run_cases(Path(__file__).with_name("qk_norm_rope_cases.py")) > 50
