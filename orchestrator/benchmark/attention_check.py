"""What the attention kernels must hold before a benchmark may time them, on the GPU at hand."""

import math

import torch
from torch import Tensor

from toprovar_batch.kernels.flash_attention import AttentionInputs, attention, attention_entropy
from toprovar_batch.kernels.flash_attention.config import KernelConfig
from toprovar_batch.kernels.flash_attention.launch import flash_attention
from toprovar_batch.kernels.layout import KeyLengths, TokenLayout

# Allowed on top of twice PyTorch's own error, whose entropy is of float32 products; tensor cores round more coarsely.
_ROUNDING = 5e-6
_QUERIES = (63, 0, 130, 5, 200, 1)
_KEYS = (111, 5, 700, 256, 1, 129)


def make_inputs(
    heads: int,
    head_dim: int,
    queries: tuple[int, ...],
    keys: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> AttentionInputs:
    """Seeded random inputs; keys and values are parts of a longer cache, with NaN behind each row's own.

    Queries and keys are of Infinity's kind: of unit length, the queries times 20.
    """
    generator = torch.Generator(device).manual_seed(sum(queries) + head_dim)

    def unit(*shape: int) -> Tensor:
        drawn = torch.randn(*shape, head_dim, generator=generator, device=device)
        return torch.nn.functional.normalize(drawn, dim=-1)

    cache = torch.full((2, len(keys), heads, max(keys) + 64, head_dim), math.nan, device=device, dtype=dtype)
    for row, seen in enumerate(keys):
        cache[0, row, :, :seen] = unit(heads, seen).to(dtype)
        cache[1, row, :, :seen] = (unit(heads, seen) * head_dim**0.5).to(dtype)
    q = (unit(sum(queries), heads) * 20).to(dtype)
    k, v = cache[:, :, :, : max(keys)]
    return AttentionInputs(q, k, v, TokenLayout(queries, device), KeyLengths(keys, device), 1.0)


def find_fault(
    head_dim: int, dtype: torch.dtype, device: torch.device, config: KernelConfig | None
) -> str | None:
    """What a kernel does wrong on a ragged batch, or None.

    Its errors against float64 must be at most twice those of PyTorch in the same dtype. A row alone must give the
    same bits. The output must not depend on whether entropy is measured, of all rows or of some. The entropy of one
    key must be 0, and that of n equal scores log n.
    """
    inputs = make_inputs(3, head_dim, _QUERIES, _KEYS, dtype, device)
    out, entropy = _run(inputs, config)
    for row, part in enumerate(inputs.host_rows[0].row_slices):
        if part.start == part.stop:
            continue
        name = f"{_QUERIES[row]} queries over {_KEYS[row]} keys"
        fault = _inaccuracy(inputs.row(row), out[part], entropy[part])
        if fault:
            return f"{name}: {fault}"
        alone_out, alone_entropy = _run(inputs.row(row), config)
        if not (torch.equal(alone_out, out[part]) and torch.equal(alone_entropy, entropy[part])):
            return f"{name}: other bits alone than in a batch"
    without, _ = flash_attention(inputs, with_entropy=False, config=config)
    if not torch.equal(without, out):
        return "other bits of the output without entropy"
    for rows in (1, 3):
        own = slice(0, sum(_QUERIES[:rows]))
        seen, some = flash_attention(inputs, with_entropy=True, watched_rows=rows, config=config)
        assert some is not None
        if not (torch.equal(seen, out) and torch.equal(some[own], entropy[own])):
            return f"other bits where {rows} of {len(_QUERIES)} rows are watched"
    inputs.q.zero_()
    _, entropy = _run(inputs, config)
    expected = (
        torch.tensor(_KEYS, device=device).log().repeat_interleave(torch.tensor(_QUERIES, device=device))
    )
    if not (entropy - expected).abs().max() < 4e-6:
        return f"equal scores: the entropy is {(entropy - expected).abs().max():.1e} off log n"
    return None


def find_fault_at(inputs: AttentionInputs, out: Tensor, entropy: Tensor) -> str | None:
    """What is wrong with the answers to up to 64 queries of the first and of the last row."""
    for row in {0, inputs.layout.num_rows - 1}:
        part, alone = inputs.host_rows[0].row_slices[row], inputs.row(row)
        few = slice(part.start, min(part.start + 64, part.stop))
        layout = TokenLayout((few.stop - few.start,), inputs.q.device)
        sample = AttentionInputs(
            inputs.q[few], alone.keys, alone.values, layout, alone.key_lengths, inputs.softmax_scale
        )
        fault = _inaccuracy(sample, out[few], entropy[few])
        if fault:
            return f"row {row}: {fault}"
    return None


def _inaccuracy(one_row: AttentionInputs, out: Tensor, entropy: Tensor) -> str | None:
    scores = (
        torch.einsum("lhd,hnd->hln", one_row.q.double(), one_row.keys[0].double()) * one_row.softmax_scale
    )
    probability = scores.softmax(-1)
    exact = torch.einsum("hln,hnd->lhd", probability, one_row.values[0].double())
    exact_entropy = torch.special.entr(probability).sum(-1).mean(0)
    theirs = (attention(one_row) - exact).abs().max().item()
    their_entropy = (attention_entropy(one_row) - exact_entropy).abs().max().item()
    ours = (out - exact).abs().max().item()
    our_entropy = (entropy - exact_entropy).abs().max().item()
    if not ours <= 2 * theirs + _ROUNDING:  # "not <=" for NaN
        return f"the output is {ours:.1e} off float64, PyTorch's {theirs:.1e}"
    if not our_entropy <= 2 * their_entropy + _ROUNDING:
        return f"the entropy is {our_entropy:.1e} off float64, PyTorch's {their_entropy:.1e}"
    return None


def _run(inputs: AttentionInputs, config: KernelConfig | None) -> tuple[Tensor, Tensor]:
    out, entropy = flash_attention(inputs, with_entropy=True, config=config)
    assert entropy is not None
    return out, entropy
