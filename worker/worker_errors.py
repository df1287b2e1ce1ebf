"""What a worker raises, in a form that survives the way to the driver."""

from collections.abc import Iterator
from contextlib import contextmanager

from .credentials import redact
from .errors import UserError
from .storage import storage_errors

_SENTENCE_LENGTH = 500  # characters of an exception that reach an error row


class WorkerError(RuntimeError):
    """Whatever a worker raised, as one line "Type: text" that any process can unpickle."""

    shard_id = -1  # of the shard that it was raised over, where that is known


class OutputRefusedError(WorkerError):
    """A worker could not write its part, for no reason that lies with the samples."""


def one_line(error: Exception) -> str:
    """Say what an exception is, and what it says."""
    line = " ".join(redact(f"{type(error).__name__}: {error}").split())[:_SENTENCE_LENGTH]
    return line.encode(errors="backslashreplace").decode()


class DeviceFullError(WorkerError):
    """Others hold memory of the GPU that loading the model needs; they may give it back."""


@contextmanager
def as_one_line() -> Iterator[None]:
    """Raise what the block raises in a form that survives the way to the driver; users' mistakes as they are.

    An exception that cannot be pickled, or unpickled, would arrive as a page of traceback.
    """
    try:
        yield
    except (UserError, WorkerError):
        raise
    except Exception as error:
        raise WorkerError(one_line(error)) from error


@contextmanager
def writing() -> Iterator[None]:
    """Tell what file systems raise in the block from what the samples or the engine are to blame for.

    Raises:
        OutputRefusedError: in place of an error of a file system.
    """
    try:
        yield
    except storage_errors() as error:
        raise OutputRefusedError(one_line(error)) from error
