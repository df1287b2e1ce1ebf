"""The attention kernels against float64: on a GPU as compiled, elsewhere in Triton's interpreter.

Not collected by name, since Triton reads at its import whether to interpret. `test_flash_attention_kernel` runs this
file in a process of its own; on a GPU run it directly: `python -m pytest tests/kernels/flash_attention_cases.py`.
"""

import math

import pytest
import torch

from toprovar_batch.kernels.flash_attention import AttentionInputs, attention, attention_entropy
from toprovar_batch.kernels.flash_attention.config import KernelConfig, choose_config, shared_memory_room
from toprovar_batch.kernels.flash_attention.launch import flash_attention, mean_over_heads
from toprovar_batch.kernels.layout import KeyLengths, TokenLayout
from toprovar_batch.kernels.ops import Backend, attend

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
CAPABILITY = torch.cuda.get_device_capability() if ON_GPU else (0, 0)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Allowed beyond twice PyTorch's error. Tensor cores round sums more coarsely than the float32 products of PyTorch's
# entropy, and make float32 products of three tf32 ones.
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 1e-6, torch.float16: 1e-6}
if ON_GPU:
    ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 5e-6, torch.float16: 5e-6}
SMALL = KernelConfig(block_m=16, block_n=32, num_warps=4)
DESCRIPTORS = KernelConfig(block_m=64, block_n=64, num_warps=4, descriptors=True)
SHAPES = [
    # heads, head size, queries of each row, keys of each row
    (1, 32, (1,), (1,)),
    (2, 40, (3, 2), (2, 70)),
    (3, 64, (63, 63), (111, 111)),
    (2, 64, (130, 0, 70), (128, 1, 257)),
    (2, 96, (7, 7, 7), (7, 50, 1)),
    (2, 112, (5, 0, 63, 1), (64, 9, 63, 111)),
    (3, 128, (0, 111), (1, 200)),
    (2, 128, (64, 65, 111), (65, 64, 129)),
    (1, 256, (16, 17), (33, 32)),
]


@pytest.fixture(autouse=True)
def outputs_start_as_nan(monkeypatch):
    """Whatever a kernel does not write stands out."""
    real = torch.Tensor.new_empty

    def new_nan(self, *args, **kwargs):
        empty = real(self, *args, **kwargs)
        return empty.fill_(math.nan) if empty.is_floating_point() else empty

    monkeypatch.setattr(torch.Tensor, "new_empty", new_nan)


def _inputs(heads, head_dim, queries, keys, dtype, scale=1.0):
    """Random inputs; keys and values are parts of a larger cache, with NaN behind each row's own."""
    generator = torch.Generator().manual_seed(sum(queries) + 1000 * sum(keys) + head_dim)
    cache = torch.full((2, len(keys), heads, max(keys) + 9, head_dim), math.nan)
    q = torch.randn(sum(queries), heads, head_dim, generator=generator) * scale
    for row, length in enumerate(keys):
        cache[:, row, :, 3 : 3 + length] = torch.randn(2, heads, length, head_dim, generator=generator)
    k, v = cache.to(DEVICE, dtype)[:, :, :, 3 : 3 + max(keys)]
    layout, lengths = TokenLayout(tuple(queries), DEVICE), KeyLengths(tuple(keys), DEVICE)
    return q.to(DEVICE, dtype), k, v, layout, lengths


def _exact(q, k, v, layout, lengths, softmax_scale):
    out, entropy = [], []
    for row, part in enumerate(layout.row_slices):
        seen = lengths.lengths[row]
        scores = torch.einsum("lhd,hnd->hln", q[part].double(), k[row, :, :seen].double()) * softmax_scale
        probability = scores.softmax(-1)
        out.append(torch.einsum("hln,hnd->lhd", probability, v[row, :, :seen].double()))
        entropy.append(torch.special.entr(probability).sum(-1))
    return torch.cat(out), torch.cat(entropy, dim=1)


def _pytorch(q, k, v, layout, lengths, softmax_scale):
    """PyTorch's answer, row by row, since its mask lets NaN through."""
    inputs = AttentionInputs(q, k, v, layout, lengths, softmax_scale)
    return torch.cat([attention(inputs.row(row)) for row in range(layout.num_rows)])


def _configs(head_dim, dtype):
    chosen = choose_config(CAPABILITY, head_dim, dtype)
    if ON_GPU and dtype == torch.float32:
        return [chosen]
    room = shared_memory_room(CAPABILITY) if ON_GPU else math.inf
    return [chosen, *(other for other in (SMALL, DESCRIPTORS) if other.shared_memory(head_dim) <= room)]


def _run(q, k, v, layout, lengths, softmax_scale, **options):
    return flash_attention(
        AttentionInputs(q, k, v, layout, lengths, softmax_scale), with_entropy=True, **options
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "head_dim", "queries", "keys"), SHAPES)
def test_errors_are_at_most_twice_those_of_pytorch(heads, head_dim, queries, keys, dtype):
    inputs = (*_inputs(heads, head_dim, queries, keys, dtype), head_dim**-0.5)
    q, k, _v, layout, lengths, scale = inputs
    exact, exact_entropy = _exact(*inputs)
    allowed = 2 * (_pytorch(*inputs) - exact).abs().max() + ROUNDING[dtype]
    allowed_entropy = (
        2
        * (attention_entropy(AttentionInputs(q, k, k, layout, lengths, scale)) - exact_entropy.mean(0))
        .abs()
        .max()
    )
    for config in _configs(head_dim, dtype):
        out, entropy = _run(*inputs, config=config)
        assert out.dtype == dtype
        assert (out - exact).abs().max() <= allowed, config
        assert (entropy - exact_entropy.mean(0)).abs().max() <= allowed_entropy + ROUNDING[dtype], config


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_entropy_of_each_head_is_what_is_averaged(dtype):
    inputs = (*_inputs(3, 64, (63, 1), (111, 40), dtype), 0.125)
    _out, by_head = _run(*inputs, average_heads=False)
    _out, mean = _run(*inputs)
    assert (by_head - _exact(*inputs)[1]).abs().max() < 2e-6 + ROUNDING[dtype]
    assert torch.equal(mean, mean_over_heads(by_head))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_maximum_that_keeps_rising_is_followed(dtype):
    q, k, v, layout, lengths = _inputs(2, 64, (65,), (333,), dtype)
    q[:], k[..., 1:] = 0, 0
    q[..., 0] = 1
    k[..., 0] = (torch.arange(333, device=DEVICE) * 0.125).to(dtype)
    inputs = (q, k, v, layout, lengths, 1.0)
    out, entropy = _run(*inputs)
    exact, exact_entropy = _exact(*inputs)
    assert (out - exact).abs().max() <= 2 * (_pytorch(*inputs) - exact).abs().max() + ROUNDING[dtype]
    assert (entropy - exact_entropy.mean(0)).abs().max() < 1e-6 + ROUNDING[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("score", [0.0, 7.3, -300.0])
def test_equal_scores_have_the_entropy_of_their_number(score, dtype):
    q, k, v, layout, lengths = _inputs(2, 64, (64, 3), (97, 500), dtype)
    q[:], k[:] = 1, score / 64
    _, entropy = _run(q, k, v, layout, lengths, 1.0)
    expected = torch.tensor([math.log(97)] * 64 + [math.log(500)] * 3, device=DEVICE)
    assert (entropy - expected).abs().max() < 4e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1.0, 100.0])
def test_one_key_has_no_entropy_and_gives_its_value(size, dtype):
    q, k, v, layout, lengths = _inputs(2, 64, (70,), (1,), dtype, scale=size)
    out, entropy = _run(q, k, v, layout, lengths, 1.0)
    assert (entropy >= 0).all()
    assert entropy.max() < 1e-6
    assert (out - v[0, :, 0]).abs().max() <= 1e-6 * v[0, :, 0].abs().max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_scores_stay_exact(dtype):
    """Scores of some thousands, 16 apart where bfloat16 would hold them."""
    inputs = (*_inputs(2, 64, (65, 20), (200, 111), dtype, scale=300.0), 1.0)
    out, entropy = _run(*inputs)
    exact, exact_entropy = _exact(*inputs)
    # Tensor cores may end a step of float32 beside, here 2^-11, which moves a mean of values by twice as much of them.
    step = 2 * 2.0**-11 * inputs[2][:, :, :20].abs().max() if ON_GPU else 0.0
    allowed = 2 * (_pytorch(*inputs) - exact).abs().max() + ROUNDING[dtype] + step
    assert (out - exact).abs().max() <= allowed
    assert (entropy - exact_entropy.mean(0)).abs().max() < 2e-3  # float32 holds these scores to 2e-4
    assert (entropy >= 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_scores_as_large_as_promised_pick_the_largest(sign, dtype):
    """At 2^27 a step of float32 is 8, so all weight lies on the largest score, and ties share it."""
    q, k, v, layout, lengths = _inputs(1, 64, (5,), (200,), dtype)
    q[:], k[:] = 2.0**12, 2.0**9 * sign * (1 - 2.0**-6)  # 64 products of nearly 2^21
    k[:, :, 77] *= 1 + sign * 2.0**-7
    k[:, :, 150] = k[:, :, 77]
    out, entropy = _run(q, k, v, layout, lengths, 1.0)
    assert (out - (v[0, :, 77] + v[0, :, 150]) / 2).abs().max() < 0.02
    assert (entropy - math.log(2)).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_is_the_same_alone_and_in_any_batch(dtype):
    queries, keys = (63, 0, 130, 5, 64), (111, 5, 300, 300, 9)
    q, k, v, layout, lengths = _inputs(2, 64, queries, keys, dtype)
    out, entropy = _run(q, k, v, layout, lengths, 0.125)
    for row, part in enumerate(layout.row_slices):
        seen = (keys[row],)
        alone = (TokenLayout((queries[row],), DEVICE), KeyLengths(seen, DEVICE))
        own = _run(q[part], k[row : row + 1, :, : keys[row]], v[row : row + 1, :, : keys[row]], *alone, 0.125)
        assert torch.equal(own[0], out[part])
        assert torch.equal(own[1], entropy[part])


@pytest.mark.parametrize("keys", [(111, 111), (40, 111)])
def test_measuring_the_entropy_changes_no_bit_of_the_output(keys):
    inputs = (*_inputs(2, 128, (65, 65), keys, torch.bfloat16), 0.1)
    without, nothing = flash_attention(AttentionInputs(*inputs), with_entropy=False)
    assert nothing is None
    assert torch.equal(_run(*inputs)[0], without)


@pytest.mark.parametrize("queries", [(65, 30, 129), (64, 64, 64)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_that_are_not_watched_change_no_bit_of_what_is_given(queries, dtype):
    inputs = (*_inputs(2, 128, queries, queries, dtype), 0.1)
    out, entropy = _run(*inputs)
    few_out, few = _run(*inputs, watched_rows=1)
    assert torch.equal(few_out, out)
    assert torch.equal(few[: queries[0]], entropy[: queries[0]])


@pytest.mark.parametrize("rows", [(0,), (2, 0)])
@pytest.mark.parametrize("queries", [(9, 9, 9), (9, 8, 9), *([(1100, 1100, 1100)] if ON_GPU else [])])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_watching_a_prompt_changes_no_bit_of_what_attend_gives(queries, rows, dtype):
    inputs = q, k, _, layout, lengths = _inputs(2, 128, queries, queries, dtype)
    triton = Backend("triton", "for this test")
    watched, entropy = attend(AttentionInputs(*inputs, 0.1), entropy_rows=rows, backend=triton)
    assert torch.equal(watched, attend(AttentionInputs(*inputs, 0.1), entropy_rows=(), backend=triton)[0])
    expected = attention_entropy(AttentionInputs(q, k, k, layout, lengths, 0.1), rows)
    torch.testing.assert_close(entropy, expected, rtol=0, atol=1e-4)


def test_any_strides_of_keys_and_queries_are_taken():
    q, k, v, layout, lengths = _inputs(4, 64, (33, 33), (70, 45), torch.bfloat16)
    expected = _run(q, k, v, layout, lengths, 0.125)
    wide = torch.full((66, 3, 4, 64), math.nan, dtype=q.dtype, device=DEVICE)
    wide[:, 1] = q
    by_token = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (k, v)]  # [R, N, H, D] in memory
    padded = [torch.nn.functional.pad(x, (0, 3))[..., :64] for x in (k, v)]  # rows of 67: no bulk copies
    for keys, values in (by_token, padded):
        out, entropy = _run(wide[:, 1], keys, values, layout, lengths, 0.125)
        assert (out - expected[0]).abs().max() <= 0.01
        assert (entropy - expected[1]).abs().max() < 2e-6


def test_no_queries_give_no_output():
    q, k, v, layout, lengths = _inputs(2, 64, (0, 0), (5, 7), torch.bfloat16)
    out, entropy = _run(q, k, v, layout, lengths, 1.0)
    assert out.shape == (0, 2, 64)
    assert entropy.shape == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(3, 2, 64, dtype=torch.float64)}, "float64"),
        ({"q": torch.zeros(4, 2, 64)}, "4 queries"),
        ({"q": torch.zeros(3, 2, 32)}, "must be"),
        ({"lengths": KeyLengths((9,), DEVICE)}, "9 of 8 keys"),
        ({"lengths": KeyLengths((0,), DEVICE)}, "row 0 has 3 queries over 0"),
        ({"scale": 0.0}, "softmax_scale"),
        ({"k": torch.zeros(1, 2, 8, 128, device=DEVICE)[..., ::2]}, "side by side"),
    ],
)
def test_inputs_that_cannot_be_taken_are_named(change, message):
    given = {
        "q": torch.zeros(3, 2, 64),
        "k": torch.zeros(1, 2, 8, 64),
        "v": torch.zeros(1, 2, 8, 64),
        "layout": TokenLayout((3,), DEVICE),
        "lengths": KeyLengths((8,), DEVICE),
        "scale": 1.0,
    } | change
    with pytest.raises(ValueError, match=message):
        _run(*(x.to(DEVICE) if isinstance(x, torch.Tensor) else x for x in given.values()))
