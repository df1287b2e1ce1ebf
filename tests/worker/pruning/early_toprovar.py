"""The paper's policy with most of the tests' seven scales left to prune."""

from toprovar_batch.worker.pruning.specs import ToprovarSpec


def early_toprovar(**settings):
    """A spec whose representative scale is 2 unless `settings` say otherwise."""
    return ToprovarSpec(**{"representative_scale": 2, **settings})
