"""Which requests run together, and how many: pure functions of requests, sizes and free memory."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise

from .infinity.schedule import nearest_h_div_w
from .request import GenerationRequest

# Of a batch, over all its scales and rows: 8 guided images at 1M. Twice as many are at most 3% faster. The tokens of all
# scales count, and not those of the last alone, since small scales are bound by launches: they gain most from a batch.
BUSY_TOKENS = 8 * 2 * 10_521
# Of the free memory; the rest is for pieces of PyTorch's pools that are too small to be used again.
USABLE = 0.96


def plan_batches(
    requests: Sequence[GenerationRequest], batch_size: int | Callable[[float], int]
) -> list[list[GenerationRequest]]:
    """Group requests by scale schedule and cut the groups into equal batches.

    Args:
        requests: in any order.
        batch_size: most images of a batch, of all or by their height / width.
    """
    groups: dict[float, list[GenerationRequest]] = defaultdict(list)
    for request in requests:
        groups[nearest_h_div_w(request.h_div_w)].append(request)
    most = {ratio: batch_size if isinstance(batch_size, int) else batch_size(ratio) for ratio in groups}
    return [batch for ratio, group in groups.items() for batch in cut_equally(group, most[ratio])]


def cut_equally(group: Sequence[GenerationRequest], most: int) -> list[list[GenerationRequest]]:
    """Cut requests into as few batches as hold them, whose sizes differ by one at most, larger ones first.

    Sixteen with at most fifteen a batch run as 8 + 8, not as 15 + 1, since an image alone is slow.

    Args:
        group: stay in order.
        most: images of a batch.
    """
    count = -(-len(group) // most)
    ends = [len(group) - len(group) * left // count for left in range(count, -1, -1)] if count else []
    return [list(group[start:end]) for start, end in pairwise(ends)]


def common_h_div_w(batch: Sequence[GenerationRequest]) -> float:
    """The ratio of the schedule table that all requests of a batch share.

    Raises:
        ValueError: the batch is empty, or its requests are of different image sizes; names two of them.
    """
    if not batch:
        raise ValueError("a batch needs at least one request")
    first, ratio = batch[0], nearest_h_div_w(batch[0].h_div_w)
    for request in batch:
        if nearest_h_div_w(request.h_div_w) != ratio:
            raise ValueError(
                f"a batch makes images of one size, but h_div_w is {first.h_div_w:g} of sample {first.sample_id} and "
                f"{request.h_div_w:g} of sample {request.sample_id}; plan_batches puts them apart"
            )
    return ratio


def choose_batch_size(image_tokens: int, bytes_of: Callable[[int], int], free_bytes: int) -> int:
    """Images of a batch of a GPU: as many as keep it busy, and no more than its memory holds.

    Args:
        image_tokens: of all scales and guidance branches of an image.
        bytes_of: most bytes that a batch of some number of images takes; more images take more.
        free_bytes: of the device once the model is loaded.

    Returns:
        The smallest batch of `BUSY_TOKENS`, or the largest that fits into `USABLE` of the free memory; at least 1.
    """
    busy = -(-BUSY_TOKENS // image_tokens)
    return max(1, bisect_right(range(1, busy + 1), USABLE * free_bytes, key=bytes_of))
