"""Which shards a run makes, from what the published parts say. Pure."""

from collections.abc import Collection

from toprovar_batch.orchestrator.output.parts import Findings
from toprovar_batch.orchestrator.prompts.sample_plan import SamplePlan
from toprovar_batch.worker.shard_stats import ShardStats


def hopeless_shards(plan: SamplePlan, parts: Findings[ShardStats]) -> dict[int, int]:
    """Shards with error rows of which none can be helped, since their prompts cannot be used; and how many they are."""
    found = {}
    for shard_id, stats in parts.good.items():
        if stats.errors and plan.num_bad_prompts:
            errors = plan.shard(shard_id)["prompt_error"]
            if len(errors) - errors.null_count == stats.errors:
                found[shard_id] = stats.errors
    return found


def shards_to_do(
    num_shards: int, parts: Findings[ShardStats], *, retry_errors: bool, hopeless: Collection[int] = ()
) -> list[int]:
    """Choose the shards of a run: those without a part and, if requested, those whose part has error rows.

    Parts that cannot be read are left alone: they may be worth a look, and deleting them is the user's decision. So are
    those that are `hopeless`, see `hopeless_shards`.
    """
    done = {
        shard_id
        for shard_id, stats in parts.good.items()
        if not (retry_errors and stats.errors) or shard_id in hopeless
    }
    done |= parts.damaged.keys() | parts.unreachable.keys()
    return [shard_id for shard_id in range(num_shards) if shard_id not in done]
