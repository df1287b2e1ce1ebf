"""The residual stream's kernel against float64: on a GPU as compiled, elsewhere in Triton's interpreter.

Not collected by name, since Triton reads at its import whether to interpret. `test_residual_norm` runs this file in a
process of its own; on a GPU run it directly: `python -m pytest tests/kernels/residual_norm_cases.py`.
"""

import math

import pytest
import torch

from toprovar_batch.kernels import ops, residual_norm
from toprovar_batch.kernels.layout import TokenLayout
from toprovar_batch.kernels.ops import Backend, Modulation

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TRITON = Backend("triton", "for this test")
SHAPES = [
    # channels, tokens of each row
    (32, (1,)),
    (32, (0, 0)),
    (20, (5, 4)),
    (96, (63,)),
    (96, (3, 0, 5, 1)),
    (320, (7, 7, 7)),
    (2048, (37, 37, 37) if DEVICE.type == "cuda" else (5, 5, 5)),
    (2048, (2, 0, 3)),
    (3584, (2, 3)),
]
# Mean and spread of the residual: as usual, around a large mean, and hardly any spread.
LEVELS = [(0.0, 1.0), (300.0, 1.0), (300.0, 1e-3), (-300.0, 0.0)]


@pytest.fixture(autouse=True)
def outputs_start_as_nan_between_guards(monkeypatch):
    """Whatever the kernel does not write stands out, and so does what it writes beside."""
    real = torch.Tensor.new_empty
    whole = []

    def new_nan(self, shape, **options):
        if isinstance(shape, int):  # the interpreter's own
            return real(self, shape, **options)
        guarded = real(self, (shape[0] + 2, *shape[1:]), **options).fill_(math.nan)
        whole.append(guarded)
        return guarded[1:-1]

    monkeypatch.setattr(torch.Tensor, "new_empty", new_nan)
    yield
    assert all(each[0].isnan().all() and each[-1].isnan().all() for each in whole)


class Case:
    """Inputs with NaN around them."""

    def __init__(self, width, lengths, dtype, level=(0.0, 1.0), *, shared=False, gated=True):
        generator = torch.Generator().manual_seed(width + sum(lengths))

        def normal(*shape):
            return torch.randn(shape, generator=generator)

        def guarded(values):
            whole = torch.full((values.shape[0] + 2, *values.shape[1:]), math.nan, dtype=values.dtype)
            whole[1:-1] = values
            return whole.to(DEVICE)[1:-1]

        mean, spread = level
        rows, tokens = len(lengths), sum(lengths)
        self.layout, self.dtype = TokenLayout(lengths, DEVICE), dtype
        self.x = guarded(mean + spread * normal(tokens, width))
        self.update = guarded((spread * normal(tokens, width)).to(dtype))
        # The rows of a modulation lie apart from one another, as in a [R, 3, C] tensor.
        gate, scale, shift = guarded(
            torch.stack((normal(rows, width), normal(rows, width) + 1, normal(rows, width)), 1)
        ).unbind(1)
        self.gate = gate if gated else None
        self.modulation = Modulation(scale, shift)
        if shared:
            self.modulation = Modulation(
                (normal(width) + 1).to(DEVICE, dtype), normal(width).to(DEVICE, dtype)
            )

    def of_row(self, row):
        """The same case with one row alone."""
        part = self.layout.row_slices[row]
        alone = object.__new__(Case)
        alone.layout, alone.dtype = TokenLayout(self.layout.row_lengths[row : row + 1], DEVICE), self.dtype
        alone.x, alone.update = self.x[part], self.update[part]
        alone.gate = None if self.gate is None else self.gate[row : row + 1]
        alone.modulation = self.modulation
        if self.modulation.by_row:
            alone.modulation = Modulation(*(each[row : row + 1] for each in self.modulation))
        return alone

    def exact(self, *, add):
        """Sum and norm in float64, from loops over nothing but whole tensors' rows."""
        y = self.x.double()
        ids = torch.tensor(
            [row for row, length in enumerate(self.layout.row_lengths) for _ in range(length)],
            dtype=torch.int64,
        )
        ids = ids.to(DEVICE)
        if add:
            y = y + self.update.double() * (1.0 if self.gate is None else self.gate.double()[ids])
        return y, self.norm_of(y, ids)

    def norm_of(self, y, ids):
        """LayerNorm of float64 rows, from its definition."""
        centred = y - y.mean(1, keepdim=True)
        unit = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()
        scale, shift = (each.double() for each in self.modulation)
        return unit * scale[ids] + shift[ids] if self.modulation.by_row else unit * scale + shift

    def add_and_norm(self):
        """By the kernel."""
        return ops.add_and_norm(
            self.x, self.update, self.gate, self.modulation, self.layout, self.dtype, backend=TRITON
        )

    def modulated_norm(self):
        """By the kernel."""
        return ops.modulated_norm(self.x, self.modulation, self.layout, self.dtype, backend=TRITON)

    def gated_add(self):
        """By the kernel."""
        return ops.gated_add(self.x, self.update, self.gate, self.layout, backend=TRITON)


def _largest(difference):
    return difference.abs().max().item() if difference.numel() else 0.0


@pytest.mark.parametrize("shared", [False, True], ids=["by_row", "shared"])
@pytest.mark.parametrize("level", LEVELS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("width", "lengths"), SHAPES)
def test_errors_are_at_most_twice_those_of_pytorch(width, lengths, dtype, level, shared):
    case = Case(width, lengths, dtype, level, shared=shared, gated=not shared)
    arguments = (case.modulation, case.layout, case.dtype)

    exact, exact_norm = case.exact(add=True)
    added, normed = case.add_and_norm()
    twin, twin_norm = residual_norm.add_and_norm(case.x, case.update, case.gate, *arguments)
    assert added.dtype == torch.float32
    assert normed.dtype == dtype
    assert not added.isnan().any()
    assert _largest(added - exact) <= 2 * _largest(twin - exact)
    assert _largest(normed - exact_norm) <= 2 * _largest(twin_norm - exact_norm) + 1e-6

    _, exact_norm = case.exact(add=False)
    normed = case.modulated_norm()
    twin_norm = residual_norm.modulated_norm(case.x, *arguments)
    assert normed.dtype == dtype
    assert _largest(normed - exact_norm) <= 2 * _largest(twin_norm - exact_norm) + 1e-6
    assert torch.equal(case.gated_add(), added)


@pytest.mark.parametrize("level", LEVELS, ids=str)
@pytest.mark.parametrize("width", [96, 2048])
def test_a_large_mean_costs_no_digits(width, level):
    """PyTorch's own rounding of the mean costs some, so that its error is no bound here."""
    case = Case(width, (3, 4), torch.float32, level)
    assert _largest(case.modulated_norm() - case.exact(add=False)[1]) < 4e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("width", "lengths"), [(96, (63, 0, 5, 64)), (2048, (3, 1, 0)), (320, (7, 7, 7))])
def test_a_row_is_the_same_alone_and_in_any_batch(width, lengths, dtype):
    case = Case(width, lengths, dtype)
    whole = (*case.add_and_norm(), case.modulated_norm())
    for row, part in enumerate(case.layout.row_slices):
        alone = case.of_row(row)
        for mine, batched in zip((*alone.add_and_norm(), alone.modulated_norm()), whole, strict=True):
            assert torch.equal(mine, batched[part])
    for row in range(len(lengths)):  # a row of NaN leaves the others as they are
        case.x[case.layout.row_slices[row]] = math.nan
        others = torch.ones(len(case.x), dtype=torch.bool, device=DEVICE)
        others[: case.layout.row_slices[row].stop] = False
        for spoilt, sound in zip((*case.add_and_norm(), case.modulated_norm()), whole, strict=True):
            assert torch.equal(spoilt[others], sound[others])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [32, 320, 2048, 2080])
def test_rows_alike_are_the_same_beside_an_empty_one(width, dtype):
    """They take the other way to a token's row."""
    case, other = Case(width, (5, 5), dtype), Case(width, (5, 5, 0), dtype)
    for name in ("x", "update"):
        setattr(other, name, getattr(case, name))
    nothing = torch.full((1, width), math.nan, device=DEVICE)
    other.gate = torch.cat((case.gate, nothing))
    other.modulation = Modulation(*(torch.cat((each, nothing)) for each in case.modulation))
    for dense, ragged in zip(case.add_and_norm(), other.add_and_norm(), strict=True):
        assert torch.equal(dense, ragged)
    assert torch.equal(case.modulated_norm(), other.modulated_norm())
    assert torch.equal(case.gated_add(), other.gated_add())


@pytest.mark.parametrize("shared", [False, True], ids=["by_row", "shared"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [32, 320, 2048, 2080, 3584])
def test_adding_and_norming_at_once_or_apart_is_the_same(width, dtype, shared):
    case = Case(width, (3, 4, 0), dtype, (30.0, 1.0), shared=shared, gated=not shared)
    added, normed = case.add_and_norm()
    assert torch.equal(added, case.gated_add())
    case.x = added
    assert torch.equal(normed, case.modulated_norm())


def test_inputs_stay_as_they_are():
    case = Case(96, (3, 4), torch.bfloat16)
    before = [each.clone() for each in (case.x, case.update, case.gate, *case.modulation)]
    added, _ = case.add_and_norm()
    assert added.data_ptr() != case.x.data_ptr()
    for each, old in zip((case.x, case.update, case.gate, *case.modulation), before, strict=True):
        assert torch.equal(each, old)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 8, dtype=torch.bfloat16)}, r"residual must be .*bfloat16"),
        ({"x": torch.zeros(8, 3).T}, "residual must be contiguous"),
        ({"x": torch.zeros(4, 8)}, "4 tokens do not fit a layout of 3"),
        ({"update": torch.zeros(3, 9)}, r"update must be contiguous \(3, 8\)"),
        ({"gate": torch.zeros(2, 8)}, r"gate must be \(1, 8\)"),
        ({"modulation": Modulation(torch.zeros(1, 8), torch.zeros(1, 9))}, r"shift must be \(1, 8\)"),
        ({"modulation": Modulation(torch.zeros(9), torch.zeros(8))}, r"scale must be \(8,\)"),
    ],
)
def test_inputs_that_cannot_be_taken_are_named(change, message):
    case = Case(8, (3,), torch.float32)
    for name, value in change.items():
        moved = Modulation(*(each.to(DEVICE) for each in value)) if name == "modulation" else value.to(DEVICE)
        setattr(case, name, moved)
    with pytest.raises(ValueError, match=message):
        case.add_and_norm()
