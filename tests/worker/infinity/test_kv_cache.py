"""The cache of earlier scales."""

import torch

from toprovar_batch.kernels.layout import TokenLayout
from toprovar_batch.worker.infinity.config import TransformerArchitecture
from toprovar_batch.worker.infinity.kv_cache import KVCache, cache_bytes

CPU = torch.device("cpu")
SIZES = TransformerArchitecture(depth=2, width=8, num_heads=2, text_width=4, bits_per_token=4)


def _cache(rows, capacity):
    return KVCache(SIZES, rows, capacity, CPU, torch.float32)


def _extend(cache, layer, layout, value):
    new = torch.full((layout.num_tokens, 2, 4), float(value))
    return cache.extend(layer, new, new + 0.5, layout)


def test_dense_scales_follow_each_other():
    cache = _cache(rows=3, capacity=5)
    _extend(cache, 0, TokenLayout.dense(3, 1, CPU), 1)
    keys, values, lengths = _extend(cache, 0, TokenLayout.dense(3, 4, CPU), 2)
    assert lengths.lengths == (5, 5, 5)
    assert keys[2, 1, :, 0].tolist() == [1, 2, 2, 2, 2]
    assert values[0, 0, :, 3].tolist() == [1.5, 2.5, 2.5, 2.5, 2.5]


def test_layers_have_lengths_of_their_own():
    cache = _cache(rows=1, capacity=6)
    _extend(cache, 0, TokenLayout.dense(1, 2, CPU), 1)
    _extend(cache, 1, TokenLayout.dense(1, 1, CPU), 2)
    assert _extend(cache, 0, TokenLayout.dense(1, 1, CPU), 3)[2].lengths == (3,)
    assert _extend(cache, 1, TokenLayout.dense(1, 1, CPU), 4)[2].lengths == (2,)


def test_rows_that_keep_fewer_tokens_stay_shorter():
    cache = _cache(rows=2, capacity=6)
    _extend(cache, 0, TokenLayout.dense(2, 2, CPU), 1)
    ragged = TokenLayout.ragged([torch.tensor([0]), torch.tensor([0, 1, 2])], CPU)
    _extend(cache, 0, ragged, 2)
    keys, _values, lengths = _extend(cache, 0, TokenLayout.dense(2, 1, CPU), 3)
    assert lengths.lengths == (4, 6)
    assert keys[0, 0, :4, 0].tolist() == [1, 1, 2, 3]
    assert keys[1, 0, :, 0].tolist() == [1, 1, 2, 2, 2, 3]
    assert lengths.mask.flatten(1).tolist() == [[True] * 4 + [False] * 2, [True] * 6]


def test_the_last_scale_is_seen_but_not_kept():
    cache = _cache(rows=2, capacity=1)
    for layer in range(2):
        _extend(cache, layer, TokenLayout.dense(2, 1, CPU), 1)
    cache.stop_storing()
    for layer in range(2):
        keys, _values, lengths = _extend(cache, layer, TokenLayout.dense(2, 9, CPU), 2)
        assert lengths.lengths == (10, 10)
        assert keys[1, 1, :, 2].tolist() == [1] + [2] * 9


def test_bytes_count_keys_and_values_of_every_layer():
    assert cache_bytes(SIZES, rows=3, capacity=5, dtype=torch.bfloat16) == 2 * 2 * 3 * 5 * 8 * 2


def test_what_lies_behind_a_short_row_is_zero(monkeypatch):
    """Attention over rows padded to the longest multiplies it by 0, and NaN would stay NaN."""
    empty, new_empty = torch.empty, torch.Tensor.new_empty
    monkeypatch.setattr(torch, "empty", lambda *size, **kind: empty(*size, **kind).fill_(float("nan")))
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda like, *size: new_empty(like, *size).fill_(float("nan"))
    )
    cache = _cache(rows=2, capacity=6)
    ragged = TokenLayout.ragged([torch.tensor([0]), torch.tensor([0, 1, 2])], CPU)
    keys, values, _ = _extend(cache, 0, ragged, 2)
    assert keys[0, :, 1:].abs().max() == values[0, :, 1:].abs().max() == 0
    cache.stop_storing()
    keys, values, lengths = _extend(cache, 0, TokenLayout.dense(2, 4, CPU), 3)
    assert lengths.lengths == (5, 7)
    assert keys[0, :, 5:].abs().max() == values[0, :, 5:].abs().max() == 0
