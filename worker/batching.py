"""Which requests run together, and how many: pure functions of requests, sizes and free memory."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import torch

from .infinity.config import TransformerArchitecture
from .infinity.kv_cache import cache_bytes
from .infinity.schedule import ScaleSchedule, nearest_h_div_w
from .request import GenerationRequest

LARGEST_AUTO_BATCH = 16
_USABLE = 0.85  # of the free memory; the rest is for fragments and for what is not counted below
# Hidden states alive at the peak of a block, in multiples of the packed [T, C] one: queries, keys and
# values in float32 and their products, and the residual stream in float32.
_ACTIVATION_MULTIPLE = 25


def plan_batches(requests: Sequence[GenerationRequest], batch_size: int) -> list[list[GenerationRequest]]:
    """Group requests by scale schedule and cut the groups into equal batches.

    Args:
        requests: in any order.
        batch_size: most images of a batch.
    """
    groups: dict[float, list[GenerationRequest]] = defaultdict(list)
    for request in requests:
        groups[nearest_h_div_w(request.h_div_w)].append(request)
    return [batch for group in groups.values() for batch in cut_equally(group, batch_size)]


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


def image_bytes(
    sizes: TransformerArchitecture,
    schedule: ScaleSchedule,
    dtype: torch.dtype,
    *,
    guided: bool,
    keeps_changes: bool,
) -> int:
    """Memory that one more image of a batch takes, estimated.

    Args:
        sizes: of the transformer.
        schedule: token map sizes.
        dtype: compute dtype.
        guided: whether there is an unconditional branch.
        keeps_changes: whether the policy restores dropped tokens from kept changes of every layer.
    """
    rows = 2 if guided else 1
    *earlier, last = (height * width for height, width in schedule)
    total = cache_bytes(sizes, rows, sum(earlier), last, dtype)
    total += rows * last * sizes.width * dtype.itemsize * _ACTIVATION_MULTIPLE
    if keeps_changes:  # of the last scale but one at most
        total += sizes.depth * rows * earlier[-1] * sizes.width * dtype.itemsize
    return total


def choose_batch_size(
    device_type: str, requested: int | None, free_bytes: int | None, bytes_per_image: int
) -> int:
    """Images of a batch: as requested, or what the free memory holds.

    A CPU makes one image after the other whatever is requested, see `Generator.generate`.

    Args:
        device_type: "cuda" or "cpu".
        requested: by the user; None: fit it to the memory.
        free_bytes: of the device once the model is loaded; None on a CPU.
        bytes_per_image: see `image_bytes`.
    """
    if device_type != "cuda":
        return 1
    if requested is not None:
        return requested
    assert free_bytes is not None
    return max(1, min(LARGEST_AUTO_BATCH, int(_USABLE * free_bytes / bytes_per_image)))
