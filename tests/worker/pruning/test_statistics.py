"""Statistics of entropy maps, against full decompositions and by hand; maps that say nothing prune nothing."""

import pytest
import torch

from toprovar_batch.worker.pruning.bench import time_statistics
from toprovar_batch.worker.pruning.draw import pruning_noise
from toprovar_batch.worker.pruning.policies.skipvar import high_frequency_energy
from toprovar_batch.worker.pruning.saliency import bit_certainty, code_detail, code_smoothness
from toprovar_batch.worker.pruning.statistics import (
    floor_count,
    keep_lowest,
    keep_probability,
    kept_counts,
    low_entropy_ratio,
    representation_score,
    resize_maps,
    singular_value_ratio,
)

NAN = float("nan")
SHAPES = [(1, 1), (2, 2), (3, 7), (8, 8), (12, 12), (21, 14), (40, 16), (1, 9)]


def test_everything_is_timed():
    timings = time_statistics(torch.device("cpu"), 2, 1, repeats=1)
    assert len(timings) == 4
    assert all(timing.milliseconds > 0 for timing in timings)


def _random(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_ratio_is_that_of_the_largest_eigenvalues(shape):
    maps = 5 + _random(7, 3, *shape)
    exact = maps.double()
    eigenvalues = torch.linalg.eigvalsh(exact @ exact.mT)  # ascending
    wanted = (eigenvalues[..., -1] / eigenvalues[..., -2]).sqrt() if min(shape) > 1 else torch.inf
    torch.testing.assert_close(singular_value_ratio(maps), torch.as_tensor(wanted).expand(7, 3).double())


@pytest.mark.parametrize("third", [0.0, 0.5, 0.999, 1 - 1e-6, 1.0])
def test_the_ratio_is_exact_however_close_the_third_value(third):
    generator = torch.Generator().manual_seed(1)
    left, right = (
        torch.linalg.qr(torch.randn(9, 9, generator=generator, dtype=torch.float64))[0] for _ in "lr"
    )
    values = torch.tensor([30.0, 1.0, third] + [0.1 * third] * 6, dtype=torch.float64)
    assert singular_value_ratio(left @ values.diag() @ right).item() == pytest.approx(30, rel=1e-9)


def test_equal_first_values_have_the_ratio_one():
    assert singular_value_ratio(torch.eye(6)).item() == 1.0


@pytest.mark.parametrize(
    "maps",
    [
        _random(1, 1),
        torch.zeros(4, 4),
        torch.full((5, 5), 0.1),
        torch.full((6, 3), 1e-30),
        torch.outer(torch.arange(1.0, 8), torch.arange(3.0, 9)),
        _random(1, 9),
        torch.tensor([[NAN, 1.0], [1.0, 2.0]]),
        torch.tensor([[float("inf"), 1.0], [1.0, 2.0]]),
    ],
    ids=["one token", "zero", "equal", "tiny", "rank one", "one row", "NaN", "infinite"],
)
def test_maps_that_say_nothing_make_a_layer_global(maps):
    ratio = singular_value_ratio(maps)
    assert ratio.isinf()
    for beta in (0.0, 0.003, 1e6):
        assert representation_score(ratio, beta).item() == 0.0


def test_layer_scores_fall_with_the_ratio():
    scores = representation_score(torch.tensor([1.0, 2.0, 11.0], dtype=torch.float64), 0.1)
    torch.testing.assert_close(scores, torch.exp(-torch.tensor([0.0, 0.1, 1.0], dtype=torch.float64)))


def test_low_entropy_ratio_counts_tokens_below_the_mean():
    maps = torch.tensor([[1.0, 1, 1, 5], [0, 4, 4, 4], [1, 2, 3, 4]])
    assert low_entropy_ratio(maps).tolist() == [0.75, 0.25, 0.5]


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 7.77])
@pytest.mark.parametrize("length", [1, 3, 49, 1024])
def test_equal_tokens_have_no_low_entropy_ratio(value, length):
    assert low_entropy_ratio(torch.full((2, length), value)).isnan().all()


def test_the_floor_is_rounded_up_but_not_for_a_rounding_error():
    assert [floor_count(*each) for each in ((0.07, 100), (0.14, 50), (0.071, 100), (0.0, 9), (1.0, 9))] == [
        7, 7, 8, 0, 9,
    ]  # fmt: skip


def test_a_map_with_a_nan_has_no_low_entropy_ratio():
    assert low_entropy_ratio(torch.tensor([[1.0, NAN, 2], [1, 2, 3]])).isnan().tolist() == [True, False]


def test_keep_probability_by_hand():
    entropy = torch.tensor([[1.0, 2.0, 3.0, 2.0]])  # N H^ = 0.5, 1, 1.5, 1
    kept = keep_probability(entropy, torch.tensor([0.5]), 0.8, 0.1, 0.9)
    torch.testing.assert_close(kept, 1 - torch.tensor([[0.26, 0.42, 0.58, 0.42]]))


def test_the_literal_normalisation_gives_every_token_nearly_the_same():
    entropy = _random(1, 1000) * 6
    literal = keep_probability(entropy, torch.ones(1), 1.0, 0.3, 0.9, literal=True)
    assert (literal - 0.7).abs().max() < 2e-3
    assert keep_probability(entropy, torch.ones(1), 1.0, 0.3, 0.9).std() > 0.1


def test_keep_probability_is_clipped_and_never_nan():
    maps = torch.tensor([[0.0, 0, 0, 0], [0, 0, 0, 9], [1, NAN, 1, 1], [2, 2, 2, 2]])
    kept = keep_probability(maps, torch.ones(4), 1.0, 0.0, 3.0)
    assert kept.tolist() == [[0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]]
    assert keep_probability(torch.ones(1, 1), torch.ones(1), 1.0, 0.2, 0.2).item() == pytest.approx(0.8)


def test_counts_are_the_rounded_sum_and_no_less_than_the_floor():
    probability = torch.tensor([[0.5, 0.5, 0.5, 0.7], [0.0, 0, 0, 0], [1, 1, 1, 1]])
    assert kept_counts(probability, 0.0).tolist() == [2, 0, 4]
    assert kept_counts(probability, 0.3).tolist() == [2, 2, 4]
    assert [floor_count(ratio, 100) for ratio in (0.0, 0.001, 0.01, 1.0)] == [0, 1, 1, 100]


def test_the_lowest_keys_are_kept_and_ties_go_to_the_first():
    keys = torch.tensor([[3.0, 1, 2, 1], [5, 5, 5, 5], [NAN, 1, NAN, 0], [1, 2, 3, 4]])
    kept = keep_lowest(keys, torch.tensor([2, 3, 3, 0]))
    assert kept.int().tolist() == [[0, 1, 0, 1], [1, 1, 1, 0], [1, 1, 0, 1], [0, 0, 0, 0]]


def test_maps_keep_their_values_when_resized():
    maps = torch.tensor([[[[1.0, 1.0], [3.0, 3.0]]]])
    assert torch.equal(resize_maps(maps, (2, 2)), maps.flatten(-2))
    bigger = resize_maps(maps, (4, 4)).view(4, 4)
    assert bigger[:, 0].tolist() == [1.0, 1.5, 2.5, 3.0]


def test_pruning_noise_depends_on_seed_scale_layer_and_token_alone():
    seeds = torch.tensor([5, 2**62, 7])
    noise = pruning_noise(seeds, 4, 9, 30)
    assert noise.shape == (9, 3, 30)
    assert torch.equal(pruning_noise(seeds[1:2], 4, 3, 11)[:, 0], noise[:3, 1, :11])
    assert 0 < noise.min() < noise.max() < 1
    assert len(noise.unique()) > 0.99 * noise.numel()
    assert not torch.equal(pruning_noise(seeds, 5, 9, 30), noise)
    assert noise.mean().item() == pytest.approx(0.5, abs=0.05)


def test_certainty_of_bits_is_between_a_fair_coin_and_a_sure_one():
    logits = torch.tensor([[[0.0, 0.0, 3.0, 3.0], [0.0, 1e4, 1e4, 0.0], [0.0, 0.0, -1e4, 1e4]]])
    torch.testing.assert_close(bit_certainty(logits), torch.tensor([[0.0, 1.0, 0.5]]))


def test_smoothness_is_low_where_codes_have_detail():
    codes = torch.zeros(2, 3, 8, 8)
    codes[0, :, 2, 2] = 1.0
    smooth = code_smoothness(codes, (8, 8)).view(2, 8, 8)
    assert smooth[0].argmin() == 2 * 8 + 2
    assert smooth[0, 7, 7] == 1.0
    assert torch.equal(smooth[1], torch.ones(8, 8))
    assert code_smoothness(codes, (1, 1)).tolist() == [[1.0], [1.0]]


def test_high_frequency_energy_tells_a_checkerboard_from_a_slope():
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2
    slope = torch.sin(torch.arange(8) / 8 * 2 * torch.pi).expand(8, 8)
    codes = torch.stack([board.float(), slope, torch.ones(8, 8), torch.full((8, 8), NAN)])[:, None]
    energy = high_frequency_energy(codes, (8, 8))
    assert energy[0].item() == pytest.approx(1)
    assert energy[1].item() == pytest.approx(0, abs=1e-12)
    assert energy[2].item() == 0
    assert energy[3].isnan()


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 3), (6, 4)])
def test_code_detail_is_the_distance_to_the_mean_of_the_window(size):
    codes = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    height, width = size
    expected = torch.zeros(2, height, width)
    for row in range(height):
        for column in range(width):
            window = codes[:, :, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            expected[:, row, column] = (codes[:, :, row, column] - window.mean((2, 3))).square().sum(1)
    torch.testing.assert_close(code_detail(codes, size), expected.flatten(1))
    assert code_detail(torch.full((1, 3, *size), 0.3), size).abs().max() < 1e-12
