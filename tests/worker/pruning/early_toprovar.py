"""The paper's policy with most of the tests' seven scales left to prune."""

from toprovar_batch.worker.pruning.policies.specs import ToprovarSpec


def early_toprovar(**settings):
    """Eq. 3 as printed, and the representative scale 2, unless `settings` say otherwise."""
    printed = {"depth_threshold": 0.5, "threshold_direction": "at_least", "representative_scale": 2}
    return ToprovarSpec(**printed | settings)
