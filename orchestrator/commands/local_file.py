"""The type of options that name a file of this machine."""

import os
from pathlib import Path

import click

from toprovar_batch.worker.storage import absolute


class LocalFile(click.Path):
    """A local path; `~` and `~name` at its beginning, which some shells leave in `--file=~/x`, are expanded."""

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        """Expand and check the path; an unknown user is a mistake on the command line."""
        path = os.fspath(value)
        try:
            return super().convert(absolute(path, Path.cwd()) if path.startswith("~") else path, param, ctx)
        except ValueError as error:
            self.fail(f"{path}: {error}", param, ctx)
