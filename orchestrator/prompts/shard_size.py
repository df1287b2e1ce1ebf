"""How many samples a shard holds where the job leaves that open, and whether all workers get one."""

from toprovar_batch.worker.words import counted

_MOST = 64  # samples of a shard: what a lost worker costs, and by how much workers end at different times
_FEWEST = (
    8  # as long as nobody knows the workers: images of a batch that keeps a GPU busy at 1M with guidance
)
_LIKELY_WORKERS = 8  # as long as nobody knows them: the GPUs of one host


def default_shard_size(num_samples: int, num_workers: int | None) -> int:
    """Choose a size that spreads the samples over the workers, and for which no cluster has to be asked.

    Args:
        num_samples: of the job, at least 1.
        num_workers: that the job asks for. Then the busiest of them has as few samples as can be. None: enough shards
            for the GPUs of one host, as long as a shard is worth a batch.

    Returns:
        Samples a shard, 1 to 64.
    """
    if num_workers is None:
        return min(_MOST, max(_FEWEST, -(-num_samples // _LIKELY_WORKERS)))
    rounds = -(-num_samples // (_MOST * num_workers))
    return -(-num_samples // (rounds * num_workers))


def idle_sentence(num_samples: int, shard_size: int, num_workers: int) -> str | None:
    """Say which workers get no shard of a new dataset although smaller shards would occupy them; None if none."""
    num_shards, fitting = -(-num_samples // shard_size), -(-num_samples // num_workers)
    occupied = -(-num_samples // fitting)
    if num_shards >= num_workers or occupied <= num_shards:
        return None
    return (
        f"{counted(num_shards, 'shard')} for {counted(num_workers, 'worker')}: {num_workers - num_shards:,} idle; "
        f"a new dataset with shard_size: {fitting} occupies {occupied:,}"
    )
