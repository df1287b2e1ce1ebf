"""The kernel of q and k norm, rotation and cache write against float64: compiled on a GPU, elsewhere interpreted.

Not collected by name, since Triton reads at its import whether to interpret. `test_qk_norm_rope` runs this file in a
process of its own; on a GPU run it directly: `python -m pytest tests/kernels/qk_norm_rope_cases.py`.
"""

import math

import pytest
import torch

from toprovar_batch.kernels.layout import TokenLayout
from toprovar_batch.kernels.ops import Backend
from toprovar_batch.kernels.ops import qk_norm_rope_append as by_backend
from toprovar_batch.kernels.qk_norm_rope.launch import qk_norm_rope_append
from toprovar_batch.kernels.qk_norm_rope.naive import qk_norm_rope_append as naive

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
PLACES = 65
SHAPES = [
    # heads, head size, tokens of each row (one number: the whole map, dense), slot of each row's first token
    (1, 2, 1, (0,)),
    (2, 6, 63, (3, 3)),
    (3, 64, 5, (0, 0, 0)),
    (4, 128, 9, (7, 7)),
    (16, 32, 1, (0,) * 7),
    (5, 96, 16, (0, 40, 3)),
    (7, 128, 2, (0, 1)),
    (4, 64, (3, 0, 17), (5, 9, 0)),
    (6, 128, (0, 1), (0, 0)),
    (2, 40, (0, 0, 63, 0), (2, 2, 2, 2)),
    (1, 64, (7, 7), (0, 0)),
    (3, 16, (7, 7), (4, 0)),
    (2, 8, (0, 0), (1, 2)),
]


@pytest.fixture(autouse=True)
def outputs_start_as_nan(monkeypatch):
    """Whatever a kernel does not write stands out."""
    real = torch.Tensor.new_empty

    def new_nan(self, *args, **kwargs):
        empty = real(self, *args, **kwargs)
        return empty.fill_(math.nan) if empty.is_floating_point() else empty

    monkeypatch.setattr(torch.Tensor, "new_empty", new_nan)


def _inputs(heads, head_dim, lengths, starts, dtype):
    """Random inputs and caches full of NaN, with room to spare behind the longest row."""
    generator = torch.Generator().manual_seed(1000 * heads + head_dim)
    if isinstance(lengths, int):
        places, layout = lengths, TokenLayout.dense(len(starts), lengths, DEVICE)
    else:
        places = PLACES
        kept = [torch.randperm(places, generator=generator)[:length] for length in lengths]
        layout = TokenLayout.ragged(kept, DEVICE)
    angles = torch.randn(places, head_dim // 2, generator=generator, dtype=torch.float64) * 3
    rotation = torch.polar(torch.ones_like(angles), angles).to(DEVICE, torch.complex64)
    qkv = torch.randn(layout.num_tokens, 3, heads, head_dim, generator=generator) * 3
    if layout.num_tokens:
        qkv[0, 0, 0] = 0  # a zero vector stays zero
    q_scale = torch.linspace(0.5, 90, heads).to(DEVICE)
    return qkv.to(DEVICE, dtype), q_scale, rotation, layout, starts


def _caches(qkv, layout, starts):
    room = max(start + new for start, new in zip(starts, layout.row_lengths, strict=True)) + 3
    shape = (2, len(starts), qkv.shape[2], room, qkv.shape[3])
    return torch.full(shape, math.nan, dtype=qkv.dtype, device=DEVICE)


def _exact(qkv, q_scale, rotation, layout, starts, caches):
    """Float64, a token at a time; gives q and the caches."""
    q = torch.empty(qkv[:, 0].shape, dtype=torch.float64, device=DEVICE)
    caches = caches.double()
    places = layout.token_indices
    if places is None:
        places = torch.arange(layout.num_tokens) % rotation.shape[0]
    for row, part in enumerate(layout.row_slices):
        for within, token in enumerate(range(part.start, part.stop)):
            queries, keys, values = qkv[token].double()
            turn = rotation[places[token]].to(torch.complex128)
            queries = (
                queries / queries.norm(dim=-1, keepdim=True).clamp_min(1e-12) * q_scale[:, None].double()
            )
            keys = keys / keys.norm(dim=-1, keepdim=True).clamp_min(1e-12)
            for x, target in ((queries, q[token]), (keys, caches[0, row, :, starts[row] + within])):
                pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
                target[:] = torch.view_as_real(pairs * turn).flatten(-2)
            caches[1, row, :, starts[row] + within] = values
    return q, caches


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_float64_and_touches_no_other_slot(shape, dtype):
    inputs = _inputs(*shape, dtype)
    qkv, _, _, layout, starts = inputs
    caches, plain = _caches(qkv, layout, starts), _caches(qkv, layout, starts)
    q = qk_norm_rope_append(*inputs, *caches)
    plain_q = naive(*inputs, *plain)
    exact_q, exact = _exact(*inputs, caches=_caches(qkv, layout, starts))
    assert q.shape == exact_q.shape
    assert q.dtype == qkv.dtype
    for ours, torchs, true in ((q, plain_q, exact_q), (caches[0], plain[0], exact[0])):
        assert torch.equal(ours.isnan(), true.isnan())
        if true.numel():
            error, allowed = ((x.double() - true).nan_to_num().abs().max() for x in (ours, torchs))
            assert error <= 2 * allowed + 1e-6 * true.nan_to_num().abs().max()
    assert torch.equal(caches[1].double().nan_to_num(7.0), exact[1].nan_to_num(7.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [6, 64, 128])
def test_a_row_is_the_same_alone_and_in_any_batch(head_dim, dtype):
    lengths, starts = (13, 0, 1, 64), (2, 5, 9, 0)
    qkv, q_scale, rotation, layout, starts = _inputs(4, head_dim, lengths, starts, dtype)
    caches = _caches(qkv, layout, starts)
    q = qk_norm_rope_append(qkv, q_scale, rotation, layout, starts, *caches)
    for row, part in enumerate(layout.row_slices):
        alone = TokenLayout.ragged([layout.token_indices[part]], DEVICE)
        own = torch.full_like(caches[:, row : row + 1], math.nan)
        own_q = qk_norm_rope_append(qkv[part], q_scale, rotation, alone, (starts[row],), *own)
        assert torch.equal(own_q, q[part])
        assert torch.equal(own.nan_to_num(7.0), caches[:, row : row + 1].nan_to_num(7.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_token_is_the_same_in_a_whole_map_and_among_kept_ones(dtype):
    qkv, q_scale, rotation, layout, starts = _inputs(4, 64, 9, (3, 3), dtype)
    caches, kept = _caches(qkv, layout, starts), _caches(qkv, layout, starts)
    q = qk_norm_rope_append(qkv, q_scale, rotation, layout, starts, *caches)
    places = [torch.tensor([8, 2]), torch.tensor([0, 1, 7])]
    tokens = torch.cat([places[0], places[1] + 9]).to(DEVICE)
    ragged = TokenLayout.ragged(places, DEVICE)
    assert torch.equal(qk_norm_rope_append(qkv[tokens], q_scale, rotation, ragged, starts, *kept), q[tokens])
    for row, own in enumerate(places):
        assert torch.equal(kept[:, row, :, 3 : 3 + len(own)], caches[:, row][:, :, 3 + own.to(DEVICE)])


@pytest.mark.parametrize("lengths", [11, (11, 4)])
def test_any_strides_of_the_input_and_the_cache_are_taken(lengths):
    qkv, *rest = _inputs(4, 64, lengths, (3, 3), torch.bfloat16)
    expected = _caches(qkv, *rest[2:])
    q = qk_norm_rope_append(qkv, *rest, *expected)
    wide = torch.full((qkv.shape[0], 4, 3, 2 * 64), math.nan, dtype=qkv.dtype, device=DEVICE)
    apart = wide[..., 64:].transpose(1, 2).copy_(qkv)
    by_token = torch.full_like(expected.transpose(2, 3).contiguous(), math.nan).transpose(2, 3)
    interleaved = torch.full((2, 4, 14 + 3, 3, 64), math.nan, dtype=qkv.dtype, device=DEVICE)
    interleaved = interleaved.permute(3, 0, 1, 2, 4)[1:]  # [2, 2, 4, 17, 64]
    for given, caches in ((apart, by_token), (qkv, interleaved)):
        assert torch.equal(qk_norm_rope_append(given, *rest, *caches), q)
        assert torch.equal(caches.nan_to_num(7.0), expected.nan_to_num(7.0))


@pytest.mark.skipif(not ON_GPU, reason="needs 8 GB, which the interpreter would copy")
@pytest.mark.parametrize("lengths", [11, (11, 4)])
def test_rows_farther_apart_than_32_bits_are_reached(lengths):
    inputs = _inputs(4, 64, lengths, (3, 3), torch.bfloat16)
    expected = _caches(inputs[0], *inputs[3:])
    q = qk_norm_rope_append(*inputs, *expected)
    storage = torch.full((2**32,), math.nan, dtype=torch.bfloat16, device=DEVICE)
    far = storage.as_strided(expected.shape, (2**20, 2**31 + 64, 2**15, 64, 1))
    assert torch.equal(qk_norm_rope_append(*inputs, *far), q)
    assert torch.equal(far.nan_to_num(7.0), expected.nan_to_num(7.0))


def test_the_backend_chooses_and_both_agree():
    inputs = _inputs(4, 64, (5, 3), (3, 0), torch.float32)
    results = []
    for name in ("torch", "triton"):
        caches = _caches(inputs[0], *inputs[3:])
        q = by_backend(*inputs, *caches, backend=Backend(name, "for this test"))
        results.append((q, caches))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qkv": torch.zeros(3, 3, 2, 7)}, "even D"),
        ({"qkv": torch.zeros(3, 3, 2, 8, dtype=torch.float64)}, "float64"),
        ({"qkv": torch.zeros(3, 3, 2, 8, dtype=torch.float16)}, "the same for all"),
        ({"qkv": torch.zeros(4, 3, 2, 8)}, "4 tokens"),
        ({"keys": torch.zeros(1, 2, 5, 4)}, "must be"),
        ({"keys": torch.zeros(1, 2, 5, 16, device=DEVICE)[..., ::2]}, "side by side"),
        ({"starts": (3,)}, "row 0: 3 tokens from slot 3 on do not fit 5 slots"),
        ({"starts": (-1,)}, "row 0: 3 tokens from slot -1"),
        ({"starts": (0, 0)}, "2 starts"),
        ({"q_scale": torch.ones(2, dtype=torch.float16)}, "q_scale"),
        ({"rotation": torch.ones(3, 8, dtype=torch.complex64)}, "rotation"),
        ({"rotation": torch.ones(4, 4, dtype=torch.complex64)}, "a map of 4"),
    ],
)
def test_inputs_that_cannot_be_taken_are_named(change, message):
    given = {
        "qkv": torch.zeros(3, 3, 2, 8),
        "q_scale": torch.ones(2),
        "rotation": torch.ones(3, 4, dtype=torch.complex64),
        "layout": TokenLayout.dense(1, 3, DEVICE),
        "starts": (0,),
        "keys": torch.zeros(1, 2, 5, 8),
        "values": torch.zeros(1, 2, 5, 8),
    } | change
    with pytest.raises(ValueError, match=message):
        qk_norm_rope_append(*(x.to(DEVICE) if isinstance(x, torch.Tensor) else x for x in given.values()))
