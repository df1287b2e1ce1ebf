"""Attention and its entropy in plain PyTorch: the backend of the CPU and the twin of the GPU kernels."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .inputs import AttentionInputs

# Scores held at once by the entropy reference; bounds its memory at any map size.
_ENTROPY_CHUNK_ELEMENTS = 1 << 25


def attention(inputs: AttentionInputs) -> Tensor:
    """Softmax attention of packed queries over each row's own keys.

    What lies behind a row's own values must be finite, since a mask makes it 0 times that.

    Returns:
        [T, H, D] in the dtype of the queries.
    """
    q, keys, values, _, _, softmax_scale = inputs
    layout, key_lengths = inputs.host_rows
    if layout.uniform_length is not None:
        out = scaled_dot_product_attention(
            layout.by_row(q).transpose(1, 2), keys, values, attn_mask=key_lengths.mask, scale=softmax_scale
        )
        return out.transpose(1, 2).flatten(0, 1)
    out = torch.empty_like(q)
    for row, (part, seen) in enumerate(zip(layout.row_slices, key_lengths.lengths, strict=True)):
        if part.start == part.stop:
            continue
        row_out = scaled_dot_product_attention(
            q[None, part].transpose(1, 2),
            keys[row : row + 1, :, :seen],
            values[row : row + 1, :, :seen],
            scale=softmax_scale,
        )
        out[part] = row_out[0].transpose(0, 1)
    return out


def attention_entropy(inputs: AttentionInputs, rows: Sequence[int] | None = None) -> Tensor:
    """Entropy of each query's attention distribution, averaged over heads (ToProVAR, Eq. 2).

    With scores s less their maximum: H = log sum exp(s) - sum softmax(s) s.

    Args:
        inputs: queries and keys; the values are not read.
        rows: whose entropy to measure; None: all.

    Returns:
        [T] float32, nats, of the queries of these rows, row after row.
    """
    q, keys, _values, _, _, softmax_scale = inputs
    layout, key_lengths = inputs.host_rows
    measured_rows = range(layout.num_rows) if rows is None else rows
    measured = [q.new_empty(0, dtype=torch.float32)]
    for row in measured_rows:
        part = layout.row_slices[row]
        if part.start == part.stop:
            continue
        row_keys = keys[row, :, : key_lengths.lengths[row]].float()  # [H, N, D]
        chunk = max(1, _ENTROPY_CHUNK_ELEMENTS // (row_keys.shape[0] * row_keys.shape[1]))
        for first in range(part.start, part.stop, chunk):
            last = min(first + chunk, part.stop)
            scores = q[first:last].transpose(0, 1).float() @ row_keys.mT * softmax_scale  # [H, L, N]
            scores -= scores.amax(-1, keepdim=True)  # the difference below cancels least around 0
            lse = scores.logsumexp(-1)
            expected_score = (scores * torch.exp(scores - lse[..., None])).sum(-1)
            measured.append((lse - expected_score).mean(0))
    return torch.cat(measured)
