"""The cache with the Triton backend beside the PyTorch one: compiled on a GPU, elsewhere interpreted.

Not collected by name, since Triton reads at its import whether to interpret. `test_kv_cache` runs this file in a process
of its own; on a GPU run it directly: `python -m pytest tests/worker/infinity/kv_cache_cases.py`.
"""

import math

import pytest
import torch

from toprovar_batch.kernels.flash_attention import attention
from toprovar_batch.kernels.layout import TokenLayout
from toprovar_batch.kernels.ops import PYTORCH, AttentionInputs, Backend, fastest_attention
from toprovar_batch.worker.infinity.config import TransformerArchitecture
from toprovar_batch.worker.infinity.kv_cache import KVCache

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
TRITON = Backend("triton", "for this test")
DTYPE = torch.bfloat16 if ON_GPU else torch.float32
TOLERANCE = 2e-2 if ON_GPU else 2e-5
MAPS = [1, 6, 20]


def _layouts(ragged):
    """Three scales of three rows, the first of them whole."""
    generator = torch.Generator().manual_seed(1)
    layouts = [TokenLayout.dense(3, MAPS[0], DEVICE)]
    for places in MAPS[1:]:
        if ragged:
            kept = [torch.randperm(places, generator=generator)[:count] for count in (places, 0, places // 2)]
            layouts.append(TokenLayout.ragged(kept, DEVICE))
        else:
            layouts.append(TokenLayout.dense(3, places, DEVICE))
    return layouts


def _run(backend, sizes, layouts, monkeypatch):
    """All layers of all scales, from the same products; gives each one's answer and entropy."""
    generator = torch.Generator().manual_seed(2)
    with monkeypatch.context() as patch:
        empty = torch.empty
        patch.setattr(torch, "empty", lambda *size, **kind: empty(*size, **kind).fill_(math.nan))
        cache = KVCache(sizes, 3, sum(MAPS[:-1]), MAPS[-1], DEVICE, DTYPE, backend)
    q_scale = torch.linspace(1, 4, sizes.num_heads, device=DEVICE)
    given = []
    for places, layout in zip(MAPS, layouts, strict=True):
        if places == MAPS[-1]:
            cache.enter_last_scale()
        angles = torch.randn(places, sizes.head_dim // 2, generator=generator)
        rotation = torch.polar(torch.ones_like(angles), angles).to(DEVICE)
        for layer in range(sizes.depth):
            qkv = torch.randn(layout.num_tokens, 3, sizes.num_heads, sizes.head_dim, generator=generator)
            qkv = qkv.to(DEVICE, DTYPE)
            given.append(cache.attend(layer, qkv, q_scale, rotation, layout, entropy_rows=(0, 2)))
    return given


@pytest.mark.parametrize("ragged", [False, True])
def test_both_backends_agree_at_every_layer_of_every_scale(monkeypatch, ragged):
    sizes = TransformerArchitecture(depth=4, width=128, num_heads=2, text_width=4, bits_per_token=4)
    layouts = _layouts(ragged)
    expected = _run(PYTORCH, sizes, layouts, monkeypatch)
    given = _run(TRITON, sizes, layouts, monkeypatch)
    for (out, entropy), (plain_out, plain_entropy) in zip(given, expected, strict=True):
        torch.testing.assert_close(out, plain_out, rtol=TOLERANCE, atol=TOLERANCE)
        torch.testing.assert_close(entropy, plain_entropy, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.skipif(not ON_GPU, reason="needs 20 GB")
@pytest.mark.parametrize("layer", [0, 1, 31])
@pytest.mark.parametrize("backend", [PYTORCH, TRITON], ids=["torch", "triton"])
@pytest.mark.parametrize("ragged", [False, True])
def test_a_cache_of_the_2b_model_whose_rows_lie_farther_apart_than_32_bits_is_read_right(
    ragged, backend, layer
):
    sizes = TransformerArchitecture(depth=32, width=2048, num_heads=16, text_width=4, bits_per_token=4)
    rows, kept, last = 8, 6425, 4096
    cache = KVCache(sizes, rows, kept, last, DEVICE, torch.bfloat16, backend)
    assert cache._keys.stride(0) * (rows - 1) > 2**31
    rotation = torch.ones(kept, 64, dtype=torch.complex64, device=DEVICE)
    generator = torch.Generator(DEVICE).manual_seed(3)
    with torch.inference_mode(), fastest_attention(DEVICE):
        for scale, places in enumerate((kept, last)):
            if scale:
                cache.enter_last_scale()
            layout = TokenLayout.dense(rows, places, DEVICE)
            if ragged and scale:
                kept_tokens = [torch.arange(places - 100 * row) for row in range(rows)]
                layout = TokenLayout.ragged(kept_tokens, DEVICE)
            qkv = torch.randn(
                layout.num_tokens, 3, 16, 128, device=DEVICE, dtype=torch.bfloat16, generator=generator
            )
            q_scale = torch.full((16,), 5.0, device=DEVICE)
            q, keys, values, lengths = cache.append(layer, qkv, q_scale, rotation[:places], layout)
            cache._next_layer = layer  # the same once more, to attend
            cache._lengths[layer] = tuple(
                seen - new for seen, new in zip(lengths.lengths, layout.row_lengths, strict=True)
            )
            out, _ = cache.attend(layer, qkv, q_scale, rotation[:places], layout, entropy_rows=())
            expected = attention(
                AttentionInputs(q, keys.contiguous(), values.contiguous(), layout, lengths, 1.0)
            )
            torch.testing.assert_close(out, expected, rtol=2e-2, atol=2e-3)
            assert torch.equal(
                values[rows - 1, :, lengths.lengths[-1] - layout.row_lengths[-1] : lengths.lengths[-1]],
                qkv[layout.row_slices[-1], 2].transpose(0, 1),
            )
