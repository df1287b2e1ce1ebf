"""Generation of the codes of a batch, scale by scale.

`sample_codes` reads: for each scale, plan what runs, run the transformer, draw the bits, add their codes.
"""

from collections.abc import Callable

from torch import Tensor

from .batch_runner import BatchRunner
from .pruning.plan import ScalePlan
from .pruning.policies.base import BatchContext, PruningPolicy
from .pruning.policies.dense import DensePolicy


def sample_codes(
    runner: BatchRunner,
    seeds: Tensor,
    policy: PruningPolicy | None = None,
    on_scale: Callable[[int], None] | None = None,
) -> Tensor:
    """Generate a batch.

    Args:
        runner: of a fresh batch.
        seeds: [B] int64 on the model's device.
        policy: of this batch; None: dense.
        on_scale: called with each scale's index once its work is queued.

    Returns:
        [B, z, H, W] float32: the summed codes, which the VAE decodes.
    """
    if policy is None:
        policy = DensePolicy(BatchContext(runner.schedule, runner.model.sizes.depth, seeds))
    for scale_index in range(len(runner.schedule)):
        plan = policy.plan(scale_index)
        layers_run = _run_planned(runner, seeds, policy, scale_index, plan) if plan.prompts else None
        runner.history.add(plan, layers_run)
        if on_scale is not None:
            on_scale(scale_index)
    return runner.codes.summed_codes


def _run_planned(
    runner: BatchRunner, seeds: Tensor, policy: PruningPolicy, scale_index: int, plan: ScalePlan
) -> Tensor | None:
    """Run one scale, draw its bits and show the policy what it asked for; gives the layers each token ran."""
    guided, layers_run = runner.sample_scale(scale_index, plan, seeds, policy.observe)
    if plan.observe_logits or plan.observe_codes:
        codes = runner.codes.summed_codes if plan.observe_codes else None
        policy.observe_scale(scale_index, guided, codes, plan.prompts)
    return layers_run
