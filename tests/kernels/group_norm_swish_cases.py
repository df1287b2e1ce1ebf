"""The group norm's kernels against float64: on a GPU as compiled, elsewhere in Triton's interpreter.

Not collected by name, since Triton reads at its import whether to interpret. `test_group_norm_swish` runs this file in a
process of its own; on a GPU run it directly: `python -m pytest tests/kernels/group_norm_swish_cases.py`.
"""

import math

import pytest
import torch
from torch.nn.functional import group_norm, silu

from toprovar_batch.kernels import group_norm_swish as naive
from toprovar_batch.kernels.group_norm_swish import launch
from toprovar_batch.kernels.group_norm_swish.launch import group_norm_swish, residual_add

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
GROUPS, EPS = 32, 1e-6
SHAPES = [
    (1, 128, 1, 1),
    (3, 32, 5, 7),  # groups of one channel
    (1, 128, 9, 7),
    (2, 96, 11, 13),  # groups of three
    (2, 64, 63, 5),
    (1, 256, 16, 16),
    (1, 512, 10, 9),
    (1, 1024, 3, 3),
    (1, 128, 40, 41),
]


@pytest.fixture(autouse=True)
def outputs_start_as_nan(monkeypatch):
    """Whatever a kernel does not write stands out."""
    for owner, name in ((torch.Tensor, "new_empty"), (torch, "empty_like")):
        real = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda *args, real=real, **kwargs: real(*args, **kwargs).fill_(math.nan)
        )


def _plain(x):
    return x


def _one_far_pixel(x):
    x[..., x.shape[2] // 2, x.shape[3] // 2] = 1e4
    return x


def _last_pixel_far(x):
    x[..., -1, -1] = -3e4
    return x


def _beside_zero(x):
    return x + 1000


def _smaller_than_eps(x):
    return x * 1e-4


def _rising(x):
    return x + torch.arange(x[0, 0].numel()).view(x.shape[2:])


def _flat_but_for_one(x):
    x = torch.full_like(x, 5.3)
    x[..., 0, 0] += 1
    return x


KINDS = [_one_far_pixel, _last_pixel_far, _beside_zero, _smaller_than_eps, _rising, _flat_but_for_one]


# The interpreter takes a quarter of a second for an image, so there what is alike is not tried twice.
CASES = [
    *((shape, _plain, dtype, swish) for shape in SHAPES for dtype in DTYPES for swish in (True, False)),
    *(
        (shape, kind, dtype, swish)
        for shape in ((1, 128, 9, 7), (1, 64, 63, 5))
        for kind in KINDS
        for dtype, swish in ((torch.float32, True), (torch.float32, False), (torch.bfloat16, True))
    ),
]
if not ON_GPU:
    CASES = [case for case in CASES if case[2] == torch.float32 or case[3]]


def _name(value):
    return value.__name__[1:] if callable(value) else str(value)


def _vectors(channels, dtype, count=2):
    return torch.randn(count, channels, generator=torch.Generator().manual_seed(channels)).to(DEVICE, dtype)


def _maps(shape, dtype, kind=_plain, seed=0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape) + 1000 * seed)) * 3 + 5
    return kind(x).to(DEVICE, dtype).to(memory_format=torch.channels_last)


def _pytorch(x, weight, bias, *, swish=True):
    out = group_norm(x, GROUPS, weight, bias, EPS)
    return silu(out) if swish else out


def _error(out, exact):
    return (out - exact).abs().max()


@pytest.mark.parametrize(("shape", "kind", "dtype", "swish"), CASES, ids=_name)
def test_errors_are_at_most_twice_those_of_pytorch(shape, kind, dtype, swish):
    weight, bias = _vectors(shape[1], dtype)
    x = _maps(shape, dtype, kind)
    before = x.clone()
    exact = _pytorch(*(tensor.double() for tensor in (x, weight, bias)), swish=swish)
    out = group_norm_swish(x, weight, bias, GROUPS, EPS, swish=swish)
    assert out.dtype == dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert _error(out, exact) <= 2 * _error(_pytorch(x, weight, bias, swish=swish), exact)
    assert torch.equal(x, before)  # the residual connection still needs it


@pytest.mark.parametrize("kind", [_plain, _one_far_pixel, _beside_zero], ids=_name)
def test_float32_maps_keep_their_digits_wherever_their_mean_is(kind):
    x, (weight, bias) = _maps((1, 64, 63, 5), torch.float32, kind), _vectors(64, torch.float32)
    exact = _pytorch(x.double(), weight.double(), bias.double(), swish=False)
    out = group_norm_swish(x, weight, bias, GROUPS, EPS, swish=False)
    assert _error(out, exact) <= 8 * torch.finfo(torch.float32).eps * exact.abs().max()


def test_flat_maps_give_the_bias_itself():
    weight, bias = _vectors(128, torch.float32)
    flat = torch.linspace(-7.3, 5.7, GROUPS, device=DEVICE).repeat_interleave(4)
    x = flat[None, :, None, None].expand(2, -1, 33, 17).contiguous(memory_format=torch.channels_last)
    out = group_norm_swish(x, weight, bias, GROUPS, EPS, swish=False)
    assert _error(out, bias[:, None, None]) <= 1e-7 * bias.abs().max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_and_small_values_reach_both_ends_of_swish(dtype):
    x = _maps((1, 32, 20, 20), dtype, _one_far_pixel)
    weight, bias = torch.full((2, 32), 500.0, device=DEVICE)
    bias[::2] = -bias[::2]
    out = group_norm_swish(x, weight, bias, GROUPS, EPS)
    exact = _pytorch(x.double(), weight.double(), bias.double())
    assert exact.max() > 5000
    assert ((exact == 0) | (exact > -1e-300)).any()  # e^-y is not finite there
    assert _error(out, exact) <= 2 * _error(_pytorch(x, weight.to(dtype), bias.to(dtype)), exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("swish", [True, False])
def test_a_bias_of_the_input_is_as_good_as_added(swish, dtype):
    x, (weight, bias, input_bias) = _maps((2, 96, 11, 13), dtype), _vectors(96, dtype, 3) * 4
    exact = _pytorch(
        x.double() + input_bias.double()[:, None, None], weight.double(), bias.double(), swish=swish
    )
    out = group_norm_swish(x, weight, bias, GROUPS, EPS, swish=swish, input_bias=input_bias)
    plain = _pytorch(x + input_bias[:, None, None], weight, bias, swish=swish)
    assert _error(out, exact) <= 2 * _error(plain, exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_residual_sum_is_rounded_once_and_its_norm_as_good_as_any(shape, dtype):
    hidden, shortcut = _maps(shape, dtype), _maps(shape, dtype, _rising, seed=1)
    weight, bias = _vectors(shape[1], dtype)
    added = _vectors(shape[1], torch.float32, 1)[0]  # of another dtype
    total, statistics = residual_add(hidden, added, shortcut, GROUPS)
    exact = hidden.double() + added.double()[:, None, None] + shortcut.double()
    assert total.dtype == dtype
    assert total.is_contiguous(memory_format=torch.channels_last)
    parts = hidden.abs().double() + added.abs().double()[:, None, None] + shortcut.abs().double()
    allowed = torch.finfo(dtype).eps / 2 * exact.abs() + torch.finfo(torch.float32).eps * parts
    assert ((total - exact).abs() <= allowed).all()
    out = group_norm_swish(total, weight, bias, GROUPS, EPS, statistics=statistics)
    exact = _pytorch(total.double(), weight.double(), bias.double())
    assert _error(out, exact) <= 2 * _error(_pytorch(total, weight, bias), exact)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((3, 64, 17, 19), torch.float32), ((3, 512, 4, 4), torch.bfloat16)], ids=str
)
def test_an_image_is_the_same_alone_and_in_any_batch(shape, dtype):
    x, shortcut = _maps(shape, dtype), _maps(shape, dtype, seed=1)
    weight, bias, input_bias = _vectors(shape[1], dtype, 3)

    def results(rows):
        rows = [x[rows], shortcut[rows]]
        first, second = (part.contiguous(memory_format=torch.channels_last) for part in rows)
        total, statistics = residual_add(first, input_bias, second, GROUPS)
        return (
            group_norm_swish(first, weight, bias, GROUPS, EPS, input_bias=input_bias),
            total,
            group_norm_swish(total, weight, bias, GROUPS, EPS, statistics=statistics),
        )

    together = results(list(range(len(x))))
    for rows in ([0], [2, 1]):
        for whole, part in zip(together, results(rows), strict=True):
            assert torch.equal(whole[rows], part)


def test_what_is_not_finite_stays_in_its_image_and_group():
    x = _maps((3, 64, 9, 9), torch.float32)
    weight, bias = _vectors(64, torch.float32)
    expected = group_norm_swish(x, weight, bias, GROUPS, EPS)
    x[1, 7, 3, 4] = math.nan
    x[1, 20, 0, 0] = math.inf
    out = group_norm_swish(x, weight, bias, GROUPS, EPS)
    hit = torch.zeros(3, 64, dtype=torch.bool, device=DEVICE)
    hit[1, [6, 7, 20, 21]] = True  # the groups of two channels
    assert torch.equal(out[~hit], expected[~hit])
    assert out[hit].isnan().any(-1).any(-1).all()


@pytest.mark.parametrize(("kind", "steps"), [(_plain, 3), (_one_far_pixel, 1), (_beside_zero, 3)], ids=_name)
def test_many_small_chunks_are_joined_as_well(monkeypatch, kind, steps):
    monkeypatch.setattr(launch, "_TILE", 128)
    monkeypatch.setattr(launch, "_MIN_STEPS", steps)
    monkeypatch.setattr(launch, "_CHUNKS_AT_ONCE", 16)
    weight, bias = _vectors(64, torch.float32)
    x = _maps((1, 64, 13, 15), torch.float32, kind)
    assert launch.Chunks.of(64, 13 * 15).count > 32
    exact = _pytorch(x.double(), weight.double(), bias.double())
    out = group_norm_swish(x, weight, bias, GROUPS, EPS)
    assert _error(out, exact) <= 2 * _error(_pytorch(x, weight, bias), exact)


@pytest.mark.parametrize("shape", [(0, 64, 5, 5), (2, 64, 0, 5)], ids=str)
def test_no_pixels_give_no_output(shape):
    x, (weight, bias) = _maps(shape, torch.bfloat16), _vectors(64, torch.bfloat16)
    assert group_norm_swish(x, weight, bias, GROUPS, EPS).shape == shape
    assert residual_add(x, bias, x, GROUPS)[0].shape == shape


@pytest.mark.skipif(not ON_GPU, reason="needs 18 GB of GPU memory")
def test_maps_of_more_than_two_to_the_31_values_are_read_to_their_end():
    weight, bias = _vectors(64, torch.bfloat16)
    x = torch.randn(2, 64, 4200, 4200, device=DEVICE, dtype=torch.bfloat16).to(
        memory_format=torch.channels_last
    )
    assert x.numel() > 2**31
    out = group_norm_swish(x, weight, bias, GROUPS, EPS)
    assert torch.equal(out[1:], group_norm_swish(x[1:], weight, bias, GROUPS, EPS))
    total, _ = residual_add(x, bias, out, GROUPS)
    assert torch.equal(total[1:], residual_add(x[1:], bias, out[1:], GROUPS)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 64, 3, 3)}, "not channels-last"),
        ({"x": torch.zeros(2, 64, 3, 3).double()}, "float64"),
        ({"x": torch.zeros(2, 48, 3, 3)}, "32 groups do not divide 48 channels"),
        ({"num_groups": 24}, "24 groups are not a power of two"),
        ({"x": torch.zeros(2, 64, 3, 3, requires_grad=True)}, "no gradient"),
        ({"weight": torch.zeros(32)}, "weight must be a contiguous"),
        ({"bias": torch.zeros(64, 2, device=DEVICE)[:, 0]}, "bias must be a contiguous"),
        ({"statistics": torch.zeros(2, 3, 32, 2)}, "not those of these maps"),
    ],
)
def test_inputs_that_cannot_be_taken_are_named(change, message):
    given = {"x": torch.zeros(2, 64, 3, 3), "weight": torch.ones(64), "bias": torch.ones(64)} | change
    if "not channels-last" not in message:
        given["x"] = given["x"].to(memory_format=torch.channels_last)
    given = {name: value.to(DEVICE) if torch.is_tensor(value) else value for name, value in given.items()}
    with pytest.raises(ValueError, match=message):
        group_norm_swish(**({"num_groups": GROUPS, "eps": EPS} | given))


def test_a_shortcut_that_does_not_fit_is_named():
    x, bias = _maps((1, 64, 3, 3), torch.bfloat16), torch.zeros(64, device=DEVICE)
    for shortcut, message in (
        (x.float(), "the shortcut must be"),
        (x[..., :1], "the shortcut must be"),
        (x.contiguous(), "not channels-last"),
    ):
        with pytest.raises(ValueError, match=message):
            residual_add(x, bias, shortcut, GROUPS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_twin_is_within_the_rounding_of_its_steps(dtype):
    x, (weight, bias, input_bias) = _maps((2, 64, 9, 9), dtype), _vectors(64, dtype, 3)
    with torch.no_grad():
        twin = naive.group_norm_swish(x, weight, bias, GROUPS, EPS, input_bias=input_bias)
        total = naive.residual_add(x, bias, twin)
    out = group_norm_swish(x, weight, bias, GROUPS, EPS, input_bias=input_bias)
    torch.testing.assert_close(out, twin, rtol=8 * torch.finfo(dtype).eps, atol=16 * torch.finfo(dtype).eps)
    kernel_total, _ = residual_add(x, bias, twin, GROUPS)
    torch.testing.assert_close(
        kernel_total, total, rtol=2 * torch.finfo(dtype).eps, atol=16 * torch.finfo(dtype).eps
    )
