"""How `datasets` reads an output, whatever its cache has seen before."""

import glob
from pathlib import Path

DATA = "data/*.parquet"  # the parts, within the output


def reading_call(output: str) -> str:
    """Write the call of `load_dataset` that gives the rows that are in an output now.

    The parquet builder counts the files, their addresses and their times of change into its cache's key. For a folder
    with a `configs` block in its card `datasets` counts only the folder's last name and the card. Then a dataset that
    has grown, or another one in a folder of the same name, gives the rows that were read before.

    Args:
        output: local path or fsspec URL, as the job names it.
    """
    remote = "://" in output
    folder = output if remote else glob.escape(str(Path(output).expanduser()))
    files = f"{folder.rstrip('/')}/{DATA}"
    # A process that has listed a remote folder would not list it again.
    fresh = ', storage_options={"use_listings_cache": False}' if remote else ""
    return f'load_dataset("parquet", data_files={_quoted(files)}, split="train"{fresh})'


def _quoted(text: str) -> str:
    """A string of Python, in double quotes where that needs no escape."""
    return repr(text) if '"' in text or "\\" in text else f'"{text}"'
