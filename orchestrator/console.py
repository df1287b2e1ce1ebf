"""What commands print: on one line each, without credentials, and without anything that a terminal would obey."""

import json
import re
import sys
from typing import Any

import click

from toprovar_batch.worker.credentials import redact, redacted
from toprovar_batch.worker.errors import RunFailedError

# C0 and C1 controls, line and paragraph separators, marks that turn the direction of text, lone surrogates.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)


def printable(text: str) -> str:
    """A text as one line that is safe on any terminal: credentials masked, what is no plain character escaped."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), redact(text))


def echo(line: str, *, err: bool = False) -> None:
    """Print one line; every command prints by this or by `echo_json`.

    Args:
        line: may hold anything that users wrote, and no end of line of ours.
        err: to stderr.
    """
    _write(printable(line), err=err)


def echo_json(record: Any, *, allow_nan: bool = True, indent: int | None = 2) -> None:
    """Print a record as JSON, credentials masked; texts read back as they are otherwise; without `indent` on one line.

    Raises:
        ValueError: a number is not finite, and `allow_nan` is False.
    """
    text = json.dumps(redacted(record), indent=indent, ensure_ascii=False, allow_nan=allow_nan)
    # Within JSON only the ends of our own lines are left of the controls below U+0020.
    _write(_UNPRINTABLE.sub(lambda match: match[0] if match[0] == "\n" else f"\\u{ord(match[0]):04x}", text))


def _write(text: str, *, err: bool = False) -> None:
    try:
        click.echo(text, err=err)
    except OSError as error:
        if err or isinstance(error, BrokenPipeError):  # whoever reads has read enough: click ends quietly
            raise
        # What the stream still holds would fail again when the interpreter ends, with a traceback.
        sys.stdout = None
        raise RunFailedError(f"the output of this command cannot be written: {error.strerror}") from error
