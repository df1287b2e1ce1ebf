"""The kernel that draws bits against its plain twin: on a GPU as compiled, elsewhere in Triton's interpreter.

Not collected by name; see `flash_attention_cases`. On a GPU: `python -m pytest tests/kernels/bit_sampling_cases.py`.
"""

import math

import pytest
import torch

from toprovar_batch.kernels.bit_sampling import BitDraw, launch, naive
from toprovar_batch.kernels.layout import TokenLayout
from toprovar_batch.kernels.ops import Backend, draw_bits

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CPU = torch.device("cpu")
TRITON = Backend("triton", "for this test")
SEEDS = [7, 2**62 + 5, 0, 2**63 - 1, 123456789]
DRAWS = [
    BitDraw(0),
    BitDraw(3, cfg_scale=4.0, temperature=0.5, top_p=0.97),
    BitDraw(12, cfg_scale=3.0, temperature=0.7, top_p=0.9),
    BitDraw(1, cfg_scale=0.3, temperature=1.3, top_p=1.0),
    BitDraw(2, cfg_scale=4.0, temperature=0.7, top_p=0.97, greedy=True),
]
# Conditional tokens of each prompt, unconditional ones, tokens of the map
RAGGED = [
    ((1,), (1,), 1),
    ((63, 63), (), 63),
    ((5, 0, 40), (5, 0, 0), 111),
    ((1, 63, 111), (0, 63, 111), 111),
    ((0, 0), (0, 0), 9),
    ((111, 111, 2), (), 111),
]


@pytest.fixture(autouse=True)
def outputs_start_as_something(monkeypatch):
    """Whatever a kernel does not write stands out."""
    real = torch.empty

    def filled(*args, **kwargs):
        empty = real(*args, **kwargs)
        return empty.fill_(math.nan if empty.is_floating_point() else 1)

    monkeypatch.setattr(torch, "empty", filled)


def _logits(tokens, bits, scale=3.0):
    generator = torch.Generator().manual_seed(tokens * 100 + bits)
    return torch.randn(tokens, 2 * bits, generator=generator) * scale


def _ragged(own, twins, num_tokens):
    generator = torch.Generator().manual_seed(sum(own))
    kept = [torch.randperm(num_tokens, generator=generator)[:length].sort().values for length in own]
    return kept + [tokens[:length] for tokens, length in zip(kept, twins, strict=False)]


def _assert_same(logits, rows, seeds, num_tokens, draw):
    """The kernel gives what the plain twin gives on a CPU; `rows` are lengths, or the tokens of each row."""
    layouts = [
        TokenLayout.ragged(rows, device) if isinstance(rows[0], torch.Tensor) else TokenLayout(rows, device)
        for device in (CPU, DEVICE)
    ]
    seeds = torch.tensor(seeds)
    for with_guided in (False, True):
        expected = naive.draw_bits(logits, layouts[0], seeds, num_tokens, draw, with_guided=with_guided)
        args = (logits.to(DEVICE), layouts[1], seeds.to(DEVICE), num_tokens, draw)
        got = draw_bits(*args, with_guided=with_guided, backend=TRITON)
        assert torch.equal(got.bits.cpu(), expected.bits)
        assert torch.equal(got.finite.cpu(), expected.finite)
        assert (got.guided is None) == (not with_guided)
        if with_guided:
            torch.testing.assert_close(got.guided.cpu(), expected.guided, rtol=0, atol=0, equal_nan=True)
    return expected


@pytest.mark.parametrize("draw", DRAWS, ids=str)
@pytest.mark.parametrize("bits", [1, 6, 14, 32, 56])
@pytest.mark.parametrize("num_tokens", [1, 63, 111])
def test_whole_maps_give_the_bits_of_the_plain_twin(num_tokens, bits, draw):
    for rows in (3, 6):
        expected = _assert_same(
            _logits(rows * num_tokens, bits), (num_tokens,) * rows, SEEDS[:3], num_tokens, draw
        )
        assert expected.finite.all()


@pytest.mark.parametrize("draw", DRAWS, ids=str)
@pytest.mark.parametrize(("own", "twins", "num_tokens"), RAGGED)
def test_ragged_rows_give_the_bits_of_the_plain_twin(own, twins, num_tokens, draw):
    rows = _ragged(own, twins, num_tokens)
    _assert_same(_logits(sum(map(len, rows)), 14), rows, SEEDS[: len(own)], num_tokens, draw)


@pytest.mark.parametrize("twins", [(9, 0, 9), (0, 0, 0)])
def test_prompts_without_an_unconditional_branch_keep_their_logits(twins):
    logits = _logits(27 + sum(twins), 8)
    expected = _assert_same(logits, (9, 9, 9, *twins), SEEDS[:3], 9, BitDraw(2, 4.0, 0.5, 0.97))
    assert torch.equal(expected.guided[1], logits[9:18] / 0.5)


def test_a_bit_follows_the_exact_probability_however_near_the_noise_is():
    """Float32's own steps of a sigmoid would be decided by its rounding; here it is the next float64 that decides."""
    seeds, num_tokens, bits = [3, 2**40 + 1], 64, 32
    noise = naive.uniform_noise(torch.tensor(seeds), 5, num_tokens, bits).double()
    for step in (-1e-9, 1e-9):  # of the probability: far below a step of float32, which is 6e-8 there
        margin = torch.logit(noise + step).float()
        logits = torch.stack((torch.zeros_like(margin), margin), dim=-1).flatten(-2).flatten(0, 1)
        expected = _assert_same(logits, (num_tokens,) * 2, seeds, num_tokens, BitDraw(5))
        assert torch.equal(expected.bits, noise < torch.sigmoid(margin.double()))


def test_a_prompt_is_the_same_alone_and_in_any_batch():
    own, num_tokens, draw = (63, 0, 111, 5), 111, BitDraw(4, 3.0, 0.7, 0.97)
    rows = _ragged(own, own, num_tokens)
    layout = TokenLayout.ragged(rows, DEVICE)
    logits, seeds = _logits(layout.num_tokens, 32).to(DEVICE), torch.tensor(SEEDS[:4]).to(DEVICE)
    together = launch.draw_bits(logits, layout, seeds, num_tokens, draw, with_guided=True)
    for prompt in range(4):
        parts = [layout.row_slices[row] for row in (prompt, 4 + prompt)]
        alone = launch.draw_bits(
            torch.cat([logits[part] for part in parts]),
            TokenLayout.ragged([rows[prompt], rows[prompt]], DEVICE),
            seeds[prompt : prompt + 1], num_tokens, draw, with_guided=True,
        )  # fmt: skip
        assert torch.equal(alone.bits[0], together.bits[prompt])
        assert torch.equal(alone.guided[0], together.guided[prompt])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1, 9 * 28 - 1])
def test_a_prompt_with_a_logit_that_is_no_number_is_named(bad, place):
    logits = _logits(18, 14)
    logits[9:].flatten()[place] = bad
    expected = _assert_same(logits, (9, 9), SEEDS[:2], 9, BitDraw(0, top_p=0.97))
    assert expected.finite.tolist() == [True, False]


def test_rows_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="prompt 0 has 3 conditional and 1"):
        launch.draw_bits(torch.zeros(8, 4), TokenLayout((3, 2, 1, 2), CPU), torch.arange(2), 3, BitDraw(0))
