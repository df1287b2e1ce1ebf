"""Work that may take long and says nothing meanwhile: reading kept rows, closing a part and publishing it."""

import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from .part_file import PartWriter
from .shard_events import Alive, Refused
from .storage import storage_errors
from .worker_errors import one_line, writing

SIGN_EVERY_S = 1.0
# A storage that has hung for good never fails. Whatever takes longer than this gives no more signs of life, so the driver
# ends it after its own patience.
_LONGEST_S = 3600.0
T = TypeVar("T")


def with_signs(
    work: Callable[[], T], every_s: float = SIGN_EVERY_S, longest_s: float = _LONGEST_S
) -> Generator[Alive, None, T]:
    """Do something in a thread, and give signs of life as long as it lasts.

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
    with ThreadPoolExecutor(1, thread_name_prefix="storage") as thread:
        result = thread.submit(work)
        while not wait([result], every_s).done:
            if time.monotonic() < patience:
                yield Alive()
        return result.result()


def publish(part: PartWriter, delays_s: Sequence[float]) -> Generator[Alive | Refused, None, None]:
    """Publish a sealed part; the images in it are kept while the output refuses it.

    Args:
        part: sealed.
        delays_s: seconds before each further try.

    Raises:
        OutputRefusedError: after the last try.
    """
    for number, delay in enumerate(delays_s):
        refused = yield from with_signs(lambda: _try(part))
        if refused is None:
            return
        yield Refused(refused, len(delays_s) - number)
        yield from with_signs(lambda delay=delay: time.sleep(delay))  # type: ignore[misc]
    with writing():
        yield from with_signs(part.show)


def _try(part: PartWriter) -> str | None:
    """Publish a part, or say why the output does not take it."""
    try:
        part.show()
    except storage_errors() as error:
        return one_line(error)
    return None
