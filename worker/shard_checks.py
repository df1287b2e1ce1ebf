"""What must be true of a shard's results before they are published."""

from collections import Counter
from collections.abc import Sequence

_SAMPLES_TO_JUDGE = 3  # failed samples without a single image that are the engine's fault


def check_ids(found: Sequence[str], wanted: Sequence[str], what: str) -> None:
    """Refuse samples that are lost, foreign or there twice; two such mistakes can leave the number right.

    Raises:
        RuntimeError: naming the first few.
    """
    missing = Counter(wanted) - Counter(found)
    surplus = Counter(found) - Counter(wanted)
    if missing or surplus:
        lost, more = (", ".join(list(ids)[:3]) or "none" for ids in (missing, surplus))
        raise RuntimeError(f"{what} are not its samples: {lost} missing, {more} too many")


def check_some_made(outcomes: Counter[str | None]) -> None:
    """Refuse a shard in which the engine made nothing of several samples: they are hardly all to blame for it.

    Args:
        outcomes: samples by the sentence of their error, None for those with an image.

    Raises:
        RuntimeError: naming the most frequent error.
    """
    if outcomes.total() >= _SAMPLES_TO_JUDGE and not outcomes[None]:
        [(sentence, _)] = outcomes.most_common(1)
        raise RuntimeError(f"none of {outcomes.total()} samples could be made: {sentence}")
