"""The noise generator against its published vectors, and the draws it gives."""

import math
from pathlib import Path

import pytest
import torch

from toprovar_batch.kernels.bit_sampling import BitDraw, draw_bits, philox_4x32, sample_bits, uniform_noise
from toprovar_batch.kernels.bit_sampling.naive import unit_interval
from toprovar_batch.kernels.layout import TokenLayout

# Known answers of Philox-4x32-10, published with Random123: counter, key, output.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def _words(text):
    return [torch.tensor(int(word, 16)) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_philox_gives_its_known_answers(counter, key, output):
    assert [int(word) for word in philox_4x32(_words(counter), _words(key))] == [
        int(w) for w in _words(output)
    ]


def test_noise_of_a_seed_does_not_depend_on_the_batch():
    seeds = torch.tensor([7, 2**62 + 5, 0, 123456789])
    together = uniform_noise(seeds, 3, 10, 13)
    for row, seed in enumerate(seeds):
        assert torch.equal(uniform_noise(seed[None], 3, 10, 13)[0], together[row])


def test_noise_never_reaches_0_or_1():
    words = torch.tensor([0, 255, 2**32 - 256, 2**32 - 1])
    assert unit_interval(words).tolist() == [2.0**-25, 2.0**-25, 1 - 2.0**-24, 1 - 2.0**-24]


def test_noise_of_a_token_and_bit_does_not_depend_on_how_many_there_are():
    seed = torch.tensor([42])
    assert torch.equal(uniform_noise(seed, 0, 100, 32)[:, :7, :5], uniform_noise(seed, 0, 7, 5))


def test_noise_is_uniform_and_differs_by_seed_scale_token_and_bit():
    noise = uniform_noise(torch.arange(8), 0, 512, 32)
    assert 0 < noise.min() < noise.max() < 1
    assert noise.mean().item() == pytest.approx(0.5, abs=3e-3)
    assert noise.var().item() == pytest.approx(1 / 12, abs=2e-3)
    assert noise.unique().numel() > 0.98 * noise.numel()
    other_scale = uniform_noise(torch.arange(8), 1, 512, 32)
    assert (noise == other_scale).float().mean() < 1e-4


@pytest.mark.parametrize("probability", [0.05, 0.3, 0.5, 0.9])
def test_bits_come_up_as_often_as_their_probability(probability):
    logit = torch.tensor(probability).logit()
    logits = torch.stack((torch.zeros(4, 1000, 16), logit.expand(4, 1000, 16)), dim=-1).flatten(-2)
    bits = sample_bits(logits, torch.arange(4), 2, top_p=0, greedy=False)
    assert bits.float().mean().item() == pytest.approx(probability, abs=6e-3)


def test_top_p_makes_unlikely_values_impossible():
    probabilities = torch.tensor([0.02, 0.029, 0.05, 0.95, 0.98])
    logits = torch.stack((torch.zeros(5), probabilities.logit()), dim=-1).flatten().expand(64, 500, 10)
    often = sample_bits(logits, torch.arange(64), 0, top_p=0.97, greedy=False).float().mean((0, 1))
    assert often[0] == often[1] == 0
    assert often[4] == 1
    assert often[2].item() == pytest.approx(0.05, abs=5e-3)
    assert often[3].item() == pytest.approx(0.95, abs=5e-3)


@pytest.mark.parametrize("top_p", [0.1, 0.3, 0.5])
def test_a_small_top_p_leaves_the_likelier_value_alone(top_p):
    probabilities = torch.tensor([0.1, 0.4, 0.6, 0.9])
    logits = torch.stack((torch.zeros(4), probabilities.logit()), dim=-1).flatten().expand(8, 50, 8)
    bits = sample_bits(logits, torch.arange(8), 0, top_p=top_p, greedy=False)
    assert bits.float().mean((0, 1)).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("top_p", [0.0, 1.0])
def test_top_p_of_zero_or_one_is_off(top_p):
    logits = torch.tensor([0.0, -5.0]).expand(64, 500, 2)  # probability 0.7%
    assert sample_bits(logits, torch.arange(64), 0, top_p=top_p, greedy=False).any()


def test_greedy_takes_the_likelier_value_and_zero_on_a_tie():
    logits = torch.tensor([[[0.0, 1e-6, 1.0, 0.5, 2.0, 2.0]]])
    assert sample_bits(logits, torch.tensor([1]), 0, top_p=0.97, greedy=True).tolist() == [
        [[True, False, False]]
    ]


@pytest.mark.slow
def test_the_kernel_passes_its_cases(run_cases):
    pytest.importorskip("triton")
    assert run_cases(Path(__file__).with_name("bit_sampling_cases.py")) > 100


def test_a_bit_follows_the_exact_probability_however_near_the_noise_is():
    """A sigmoid in float32 lands on the noise itself in some of these cases, whose steps are as wide as its own."""
    noise = uniform_noise(torch.arange(4), 5, 200, 32).double()
    for step in (-1e-9, 1e-9):
        margin = torch.logit(noise + step).float()
        logits = torch.stack((torch.zeros_like(margin), margin), dim=-1).flatten(-2)
        bits = sample_bits(logits, torch.arange(4), 5, top_p=0, greedy=False)
        assert torch.equal(bits, noise < 1 / (1 + torch.exp(-margin.double())))


def _rows(lengths, num_tokens):
    generator = torch.Generator().manual_seed(4)
    return [torch.randperm(num_tokens, generator=generator)[:length].sort().values for length in lengths]


def test_kept_tokens_get_the_bits_that_they_get_in_the_whole_map():
    generator = torch.Generator().manual_seed(1)
    prompts, num_tokens, bits = 3, 20, 6
    maps = torch.randn(2 * prompts, num_tokens, 2 * bits, generator=generator)
    seeds, draw = torch.tensor([5, 6, 2**60]), BitDraw(2, cfg_scale=3.0, temperature=0.7, top_p=0.9)
    layout = TokenLayout.dense(2 * prompts, num_tokens, torch.device("cpu"))
    whole = draw_bits(maps.flatten(0, 1), layout, seeds, num_tokens, draw, with_guided=True)
    kept = _rows((20, 0, 7), num_tokens)
    packed = torch.cat([maps[row][tokens] for row, tokens in enumerate(kept * 2)])
    ragged = TokenLayout.ragged(kept * 2, torch.device("cpu"))
    some = draw_bits(packed, ragged, seeds, num_tokens, draw, with_guided=True)
    runs = torch.zeros(prompts, num_tokens, dtype=torch.bool)
    for row, tokens in enumerate(kept):
        runs[row, tokens] = True
    assert torch.equal(some.bits, whole.bits & runs[..., None])
    assert torch.equal(some.guided, whole.guided * runs[..., None])
    assert some.finite.all()


def test_guidance_leaves_alone_whoever_has_no_unconditional_tokens():
    logits = torch.randn(9 * 5, 4)
    layout = TokenLayout((9, 9, 9, 0, 9, 9), torch.device("cpu"))
    draw = BitDraw(0, cfg_scale=4.0, temperature=0.5)
    guided = draw_bits(logits, layout, torch.arange(3), 9, draw, with_guided=True).guided
    halves = (logits / 0.5).unflatten(0, (5, 9))
    assert torch.equal(guided[0], halves[0])
    assert torch.equal(guided[1:], 4.0 * halves[1:3] + (1 - 4.0) * halves[3:])


@pytest.mark.parametrize("kept", [None, (4, 0, 2)])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_prompt_that_met_no_number_is_named(kept, bad):
    cpu = torch.device("cpu")
    layout = TokenLayout.ragged(_rows(kept, 4), cpu) if kept else TokenLayout.dense(3, 4, cpu)
    logits = torch.randn(layout.num_tokens, 6)
    logits[-1, 2] = bad
    drawn = draw_bits(logits, layout, torch.arange(3), 4, BitDraw(0))
    assert drawn.guided is None
    assert drawn.finite.tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("rows", "num_tokens", "message"),
    [((3, 3), 3, "8 tokens"), ((8,), 8, "do not fit 2"), ((5, 3), 4, "5 tokens of a map of 4"),
     ((3, 2, 1, 2), 3, "prompt 0 has 3 conditional and 1")],
)  # fmt: skip
def test_rows_that_do_not_fit_are_named(rows, num_tokens, message):
    with pytest.raises(ValueError, match=message):
        draw_bits(
            torch.zeros(8, 4), TokenLayout(rows, torch.device("cpu")), torch.arange(2), num_tokens, BitDraw(0)
        )
