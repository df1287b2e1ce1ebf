"""Work that may take long and says nothing meanwhile: reading kept rows, closing a part and publishing it."""

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeVar

from .part_file import PartWriter
from .shard_events import Alive, Refused
from .storage import storage_errors
from .worker_errors import OutputRefusedError, one_line, writing

SIGN_EVERY_S = 1.0
# A storage that has hung for good never fails. Whatever takes longer than this gives no more signs of life, so the driver
# ends it after its own patience.
_LONGEST_S = 3600.0
T = TypeVar("T")


def with_signs(
    work: Callable[[], T] | Future[T], every_s: float = SIGN_EVERY_S, longest_s: float = _LONGEST_S
) -> Generator[Alive, None, T]:
    """Do something in a thread, or wait for what is done in one, and give signs of life as long as it lasts.

    Args:
        work: what to do; waits for storage, and computes nothing.
        every_s: seconds between signs.
        longest_s: seconds after which no more are given.

    Returns:
        What `work` gives.

    Raises:
        Exception: whatever `work` raises.
    """
    patience = time.monotonic() + longest_s
    with ExitStack() as stack:
        if not isinstance(work, Future):
            work = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="storage")).submit(work)
        while not wait([work], every_s).done:
            if time.monotonic() < patience:
                yield Alive()
        return work.result()


def seal_and_show(part: PartWriter, record: Mapping[str, Any]) -> tuple[int, str | None]:
    """Close a part and try once to publish it.

    Args:
        part: with all its rows.
        record: of the shard, for the footer.

    Returns:
        Its size in bytes, and why the output does not take it, or None.

    Raises:
        OutputRefusedError: the file aside cannot be written.
    """
    with writing():
        size = part.seal(record)
    return size, _try(part)


def publish_again(
    part: PartWriter, refused: str, delays_s: Sequence[float]
) -> Generator[Alive | Refused, None, None]:
    """Try to publish a sealed part again; the images in it are kept while the output refuses it.

    Args:
        part: sealed.
        refused: why it was not taken.
        delays_s: seconds before each try.

    Raises:
        OutputRefusedError: after the last try.
    """
    reason: str | None = refused
    for number, delay in enumerate(delays_s):
        yield Refused(reason or "", len(delays_s) - number)
        yield from with_signs(partial(time.sleep, delay))
        reason = yield from with_signs(partial(_try, part))
        if reason is None:
            return
    raise OutputRefusedError(reason)


def _try(part: PartWriter) -> str | None:
    """Publish a part, or say why the output does not take it."""
    try:
        part.show()
    except storage_errors() as error:
        return one_line(error)
    return None
