"""Attention and its entropy against float64, over ragged and odd shapes."""

import math
from itertools import pairwise

import pytest
import torch

from toprovar_batch.kernels.flash_attention import AttentionInputs, attention, attention_entropy
from toprovar_batch.kernels.layout import KeyLengths, TokenLayout, block_table

CPU = torch.device("cpu")
SHAPES = [
    # heads, head size, queries of each row, keys of each row
    (1, 32, (1,), (1,)),
    (2, 64, (63, 63), (111, 111)),
    (3, 96, (7, 7, 7), (7, 50, 1)),
    (2, 112, (5, 0, 63, 1), (64, 9, 63, 111)),
    (4, 128, (0, 111), (1, 200)),
    (2, 256, (16, 17), (33, 32)),
]


def _inputs(heads, head_dim, queries, keys, scale=1.0):
    generator = torch.Generator().manual_seed(sum(queries) + 1000 * sum(keys))
    q = torch.randn(sum(queries), heads, head_dim, generator=generator) * scale
    k = torch.randn(len(keys), heads, max(keys), head_dim, generator=generator)
    v = torch.randn(len(keys), heads, max(keys), head_dim, generator=generator)
    for row, length in enumerate(keys):  # what lies behind a row's keys must never be read
        k[row, :, length:] = math.nan if len(set(queries)) > 1 else 1e4
        v[row, :, length:] = math.nan if len(set(queries)) > 1 else 1e4
    return q, k, v, TokenLayout(tuple(queries), CPU), KeyLengths(tuple(keys), CPU)


def _exact(q, k, v, layout, lengths, softmax_scale):
    out, entropy = [], []
    for row, part in enumerate(layout.row_slices):
        seen = lengths.lengths[row]
        scores = torch.einsum("lhd,hnd->hln", q[part].double(), k[row, :, :seen].double()) * softmax_scale
        probability = scores.softmax(-1)
        out.append(torch.einsum("hln,hnd->lhd", probability, v[row, :, :seen].double()))
        entropy.append(torch.special.entr(probability).sum(-1).mean(0))
    return torch.cat(out), torch.cat(entropy)


@pytest.mark.parametrize(("heads", "head_dim", "queries", "keys"), SHAPES)
def test_attention_and_entropy_agree_with_float64(heads, head_dim, queries, keys):
    q, k, v, layout, lengths = _inputs(heads, head_dim, queries, keys)
    scale = head_dim**-0.5
    out, entropy = _exact(q, k, v, layout, lengths, scale)
    assert torch.allclose(
        attention(AttentionInputs(q, k, v, layout, lengths, scale)).double(), out, atol=2e-6
    )
    assert torch.allclose(
        attention_entropy(AttentionInputs(q, k, k, layout, lengths, scale)).double(), entropy, atol=5e-6
    )


def test_equal_scores_have_the_entropy_of_their_number():
    q, k, _v, layout, lengths = _inputs(2, 32, (3, 3), (97, 97), scale=0.0)
    assert torch.allclose(
        attention_entropy(AttentionInputs(q, k, k, layout, lengths, 1.0)),
        torch.tensor(math.log(97)).expand(6),
    )


def test_one_key_has_no_entropy():
    q, k, _v, layout, lengths = _inputs(2, 32, (4,), (1,))
    assert attention_entropy(AttentionInputs(q, k, k, layout, lengths, 1.0)).abs().max() == 0


def test_entropy_stays_exact_where_scores_are_large():
    q, k, v, layout, lengths = _inputs(1, 64, (9,), (40,), scale=30.0)
    _out, entropy = _exact(q, k, v, layout, lengths, 1.0)
    measured = attention_entropy(AttentionInputs(q, k, k, layout, lengths, 1.0))
    assert torch.allclose(measured.double(), entropy, atol=1e-4)
    assert (measured > -1e-4).all()


def test_entropy_does_not_depend_on_the_chunks(monkeypatch):
    q, k, _v, layout, lengths = _inputs(2, 32, (50, 50), (70, 70))
    whole = attention_entropy(AttentionInputs(q, k, k, layout, lengths, 1.0))
    monkeypatch.setattr("toprovar_batch.kernels.flash_attention.naive._ENTROPY_CHUNK_ELEMENTS", 700)
    assert torch.allclose(attention_entropy(AttentionInputs(q, k, k, layout, lengths, 1.0)), whole, atol=1e-6)


def test_layout_spreads_rows_over_their_tokens():
    ragged = TokenLayout.ragged(
        [torch.tensor([0, 3]), torch.tensor([], dtype=torch.int64), torch.tensor([1])], CPU
    )
    per_row = torch.tensor([[1.0], [2.0], [3.0]])
    assert ragged.per_token(per_row).flatten().tolist() == [1, 1, 3]
    assert ragged.token_indices.tolist() == [0, 3, 1]
    dense = TokenLayout.dense(3, 2, CPU)
    spread = dense.by_row(torch.zeros(6, 1)) + dense.per_token(per_row)
    assert spread.flatten().tolist() == [1, 1, 2, 2, 3, 3]


def test_blocks_cover_every_query_once_with_the_longest_first():
    table = block_table((5, 0, 130, 64), (10, 99, 300, 300), 64)
    assert table.tolist() == [
        [2, 2, 2, 3, 0],  # row
        [5, 69, 133, 135, 0],  # first packed query
        [130, 66, 2, 64, 5],  # queries left of the row
        [300, 300, 300, 300, 10],  # keys
    ]
    assert all(first >= second for first, second in pairwise(table[3].tolist()))


def test_blocks_are_made_once_for_equal_lengths():
    layout = TokenLayout((3, 70), CPU)
    table = layout.blocks(KeyLengths((9, 9), CPU), 64)
    assert layout.blocks(KeyLengths((9, 9), CPU), 64) is table
    assert layout.blocks(KeyLengths((9, 8), CPU), 64).tolist() != table.tolist()
