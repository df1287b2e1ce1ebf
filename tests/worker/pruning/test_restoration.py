"""Restoration: what a token gets in a layer that it does not run."""

from dataclasses import replace

import pytest
import torch

from toprovar_batch.worker.pruning.packing import PackedScale
from toprovar_batch.worker.pruning.plan import ScalePlan, TokenSet
from toprovar_batch.worker.pruning.restoration import LayerChanges

CPU = torch.device("cpu")
SIZE, WIDTH = (2, 2), 3


def _states(seed):
    return torch.randn(2 * 4, WIDTH, generator=torch.Generator().manual_seed(seed))


def _kept_of(prompts):
    """Changes of one layer: those of some of the two prompts are kept."""
    changes = LayerChanges(1, 2, torch.float32)
    if prompts:
        plan = replace(ScalePlan.dense(4, 1, 2), changes_of=prompts)
        changes.keep(0, SIZE, PackedScale(plan, 2, CPU), _states(0), _states(1))
    return changes


@pytest.mark.parametrize("kept", [(), (0,), (1,), (0, 1)])
@pytest.mark.parametrize("whole", [(), (0,), (1,)])
def test_kept_changes_are_added_in_place_to_the_prompts_that_do_not_run_whole(kept, whole):
    mask = torch.tensor([[prompt in whole] * 4 for prompt in range(2)])
    counts = tuple(4 if prompt in whole else 0 for prompt in range(2))
    plan = replace(ScalePlan.dense(4, 1, 2), layers=(TokenSet(counts, mask),), restore=True)
    packed = PackedScale(plan, 2, CPU)
    x = _states(2)
    expected = x.view(2, 4, WIDTH).clone()
    _kept_of(kept).restore(0, SIZE, packed, packed.layer_tokens(0, x), x)
    for prompt in set(kept) - set(whole):
        expected[prompt] += (_states(1) - _states(0)).view(2, 4, WIDTH)[prompt]
    torch.testing.assert_close(x.view(2, 4, WIDTH), expected)
