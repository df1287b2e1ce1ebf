"""Every error a user can meet, and the exit code that goes with it.

ToprovarError
├── UserError                 exit code 2: the user can mend it; the message says how
│   ├── JobSpecError          the job file: a key, a value, a type
│   ├── PromptSourceError     the prompt file: missing, empty, a column, a row
│   ├── ModelSpecError        the model: preset, architecture, device, missing file
│   │   └── CheckpointError   a weight file: truncated, foreign, a tensor missing or misshapen
│   └── OutputFolderError     the output folder: unwritable, or holding another job
└── RunFailedError            exit code 1: the run itself failed; what is finished stays
"""

from .credentials import redact


class ToprovarError(Exception):
    """Base of every error this package raises on purpose; its text is one sentence for the user, without credentials."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(redact(message))


class UserError(ToprovarError):
    """Something the user can mend; the command line prints it in one line and exits with 2."""

    exit_code = 2
    shard_id = -1  # of the shard over which a worker raised it


class JobSpecError(UserError):
    """A job file that cannot be read or checked; names the file and the field."""


class PromptSourceError(UserError):
    """A prompt source that cannot be read; names the file and the row or column."""


class ModelSpecError(UserError):
    """A model that cannot be built as described: preset, architecture, device or a missing file."""


class CheckpointError(ModelSpecError):
    """A weight file that is truncated, foreign, or does not fit the model; names the tensor."""


class OutputFolderError(UserError):
    """An output folder that cannot be written, or that belongs to another job."""


class RunFailedError(ToprovarError):
    """A run that could not finish; everything already published stays and a rerun continues."""
