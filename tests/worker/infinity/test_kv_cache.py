"""The cache of earlier scales."""

from pathlib import Path

import pytest
import torch

from toprovar_batch.kernels.layout import TokenLayout
from toprovar_batch.kernels.ops import PYTORCH, Backend
from toprovar_batch.worker.infinity.config import TransformerArchitecture
from toprovar_batch.worker.infinity.kv_cache import KVCache, cache_bytes

CPU = torch.device("cpu")
SIZES = TransformerArchitecture(depth=2, width=8, num_heads=2, text_width=4, bits_per_token=4)
DEEP = TransformerArchitecture(depth=5, width=8, num_heads=2, text_width=4, bits_per_token=4)


def _cache(rows, kept, last=0, sizes=SIZES):
    return KVCache(sizes, rows, kept, last, CPU, torch.float32, PYTORCH)


def _append(cache, layer, layout, value):
    """Append tokens whose keys are the unit vector (cos value, sin value, 0, 0) and whose values are `value`."""
    qkv = torch.full((layout.num_tokens, 3, 2, 4), float(value))
    angle = torch.tensor(float(value))
    qkv[:, 1] = torch.tensor([angle.cos(), angle.sin(), 0, 0]) * 3
    places = layout.uniform_length if layout.token_indices is None else 9
    rotation = torch.ones(places, 2, dtype=torch.complex64)
    _q, keys, values, lengths = cache.append(layer, qkv, torch.ones(2), rotation, layout)
    return keys, values, lengths


def _ragged(*kept):
    return TokenLayout.ragged([torch.tensor(row, dtype=torch.int64) for row in kept], CPU)


def _hold(keys, values, row, expected):
    """Whether a row's tokens are the expected ones, in their order."""
    wanted = torch.tensor(expected, dtype=torch.float32)
    angles = torch.atan2(keys[row, :, : len(expected), 1], keys[row, :, : len(expected), 0])
    return bool((angles - wanted).abs().max() < 1e-5 and (values[row, :, : len(expected), 3] == wanted).all())


def test_dense_scales_follow_each_other():
    cache = _cache(rows=3, kept=5)
    _append(cache, 0, TokenLayout.dense(3, 1, CPU), 1)
    keys, values, lengths = _append(cache, 0, TokenLayout.dense(3, 4, CPU), 2)
    assert lengths.lengths == (5, 5, 5)
    assert keys.shape == values.shape == (3, 2, 5, 4)
    assert all(_hold(keys, values, row, [1, 2, 2, 2, 2]) for row in range(3))


def test_layers_have_lengths_of_their_own():
    cache = _cache(rows=1, kept=6)
    _append(cache, 0, TokenLayout.dense(1, 2, CPU), 1)
    _append(cache, 1, TokenLayout.dense(1, 1, CPU), 2)
    assert _append(cache, 0, TokenLayout.dense(1, 1, CPU), 3)[2].lengths == (3,)
    assert _append(cache, 1, TokenLayout.dense(1, 1, CPU), -1)[2].lengths == (2,)


def test_rows_that_keep_fewer_tokens_stay_shorter():
    cache = _cache(rows=2, kept=6)
    _append(cache, 0, TokenLayout.dense(2, 2, CPU), 1)
    _append(cache, 0, _ragged([0], [0, 1, 2]), 2)
    keys, values, lengths = _append(cache, 0, TokenLayout.dense(2, 1, CPU), 3)
    assert lengths.lengths == (4, 6)
    assert _hold(keys, values, 0, [1, 1, 2, 3])
    assert _hold(keys, values, 1, [1, 1, 2, 2, 2, 3])
    assert lengths.mask.flatten(1).tolist() == [[True] * 4 + [False] * 2, [True] * 6]


def test_the_first_rows_may_go_on_alone():
    cache = _cache(rows=3, kept=6)
    _append(cache, 0, TokenLayout.dense(3, 2, CPU), 1)
    keys, values, lengths = _append(cache, 0, TokenLayout.dense(2, 1, CPU), 2)
    assert lengths.lengths == (3, 3)
    assert keys.shape == values.shape == (2, 2, 3, 4)
    keys, values, lengths = _append(cache, 0, TokenLayout.dense(3, 1, CPU), 3)
    assert lengths.lengths == (4, 4, 3)
    assert all(_hold(keys, values, row, [1, 1, 2, 3]) for row in range(2))
    assert _hold(keys, values, 2, [1, 1, 3])


@pytest.mark.parametrize("last", [1, 3, 8, 40])
def test_the_last_scale_is_seen_by_every_layer_behind_its_own_earlier_tokens(last):
    """The room for it takes that of layers before: of one, of several, and of the whole cache."""
    cache = _cache(rows=2, kept=4, last=last, sizes=DEEP)
    for layer in range(5):
        _append(cache, layer, TokenLayout.dense(2, 1, CPU), layer / 10)
        _append(cache, layer, TokenLayout.dense(2, 3, CPU), layer / 10 + 0.05)
    cache.enter_last_scale()
    for layer in range(5):
        keys, values, lengths = _append(cache, layer, TokenLayout.dense(2, last, CPU), 1 + layer / 10)
        assert lengths.lengths == (4 + last,) * 2
        expected = [layer / 10, *[layer / 10 + 0.05] * 3, *[1 + layer / 10] * last]
        assert all(_hold(keys, values, row, expected) for row in range(2))


def test_the_last_scale_may_be_ragged_and_skip_layers():
    cache = _cache(rows=2, kept=3, last=7, sizes=DEEP)
    for layer in range(5):
        _append(cache, layer, _ragged([0, 1, 2][: layer % 4], [0, 1, 2]), layer / 10)
    cache.enter_last_scale()
    for layer in (0, 1, 3, 4):
        new = ([2, 5], []) if layer == 1 else ([0], [0, 1, 2, 3, 4, 5, 6])
        keys, values, lengths = _append(cache, layer, _ragged(*new), 1 + layer / 10)
        for row, (before, own) in enumerate(zip((layer % 4, 3), new, strict=True)):
            assert lengths.lengths[row] == before + len(own)
            assert _hold(keys, values, row, [layer / 10] * before + [1 + layer / 10] * len(own))


@pytest.mark.parametrize("layer", [0, 1])
def test_a_layer_whose_keys_may_be_overwritten_cannot_run_again(layer):
    cache = _cache(rows=1, kept=1, last=4)
    cache.enter_last_scale()
    _append(cache, 1, TokenLayout.dense(1, 4, CPU), 1)
    with pytest.raises(AssertionError, match="overwritten"):
        _append(cache, layer, TokenLayout.dense(1, 4, CPU), 1)


def test_bytes_count_every_layer_and_the_last_scale_once(monkeypatch):
    reserved = []
    zeros = torch.zeros
    monkeypatch.setattr(
        torch, "zeros", lambda *size, **kind: reserved.append(zeros(*size, **kind)) or reserved[-1]
    )
    KVCache(SIZES, 3, 5, 11, CPU, torch.bfloat16, PYTORCH)
    assert sum(tensor.nbytes for tensor in reserved) == 2 * 3 * (2 * 5 + 11) * 8 * 2
    assert cache_bytes(SIZES, rows=3, kept=5, last=11, dtype=torch.bfloat16) == 2 * 3 * (2 * 5 + 11) * 8 * 2


def test_what_lies_behind_a_short_row_is_finite_where_pytorch_attends(monkeypatch):
    """Attention over rows padded to the longest multiplies it by 0, and NaN would stay NaN."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **kind: empty(*size, **kind).fill_(float("nan")))
    cache = _cache(rows=2, kept=6, last=4)
    for layer in range(2):
        keys, values, _ = _append(cache, layer, _ragged([0], [0, 1, 2]), 2)
        assert keys.isfinite().all()
        assert values.isfinite().all()
    cache.enter_last_scale()
    for layer in range(2):
        keys, values, lengths = _append(cache, layer, TokenLayout.dense(2, 4, CPU), 3)
        assert lengths.lengths == (5, 7)
        assert keys.isfinite().all()
        assert values.isfinite().all()


def test_no_cache_is_zeroed_where_the_triton_kernel_attends(monkeypatch):
    monkeypatch.setattr(torch, "zeros", lambda *_size, **_kind: pytest.fail("zeroed"))
    KVCache(SIZES, 1, 6, 4, CPU, torch.float32, Backend("triton", "for this test"))


def test_the_slots_of_a_ragged_scale_are_found_once_for_layers_alike(monkeypatch):
    cache = _cache(rows=2, kept=9, sizes=DEEP)
    layout = _ragged([0], [0, 1, 2])
    made = []
    arange = torch.arange
    monkeypatch.setattr(torch, "arange", lambda *size, **kind: made.append(size) or arange(*size, **kind))
    _append(cache, 0, layout, 1)
    first = len(made)
    for layer in range(1, 5):
        _append(cache, layer, layout, 1)
    assert len(made) == first > 0


@pytest.mark.slow
def test_both_backends_agree(run_cases):
    pytest.importorskip("triton")
    assert run_cases(Path(__file__).with_name("kv_cache_cases.py")) > 0
