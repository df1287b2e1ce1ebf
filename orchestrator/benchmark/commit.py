"""Which commit of this package's own source a measurement was made with."""

import subprocess
import tomllib
from pathlib import Path
from typing import Final

_PROJECT: Final = "toprovar-batch"


def describe_commit(module: Path = Path(__file__)) -> str | None:
    """The commit of the source tree that a module is a part of, with a mark where the tree has changes.

    A repository that only surrounds an installation says nothing of it. It counts where its root holds this package's
    pyproject.toml and it tracks the module.

    Args:
        module: a file of this package.

    Returns:
        Such as "0123456789ab-dirty"; None where the module is part of no repository of this package.
    """
    module = module.resolve()
    top = _git(module.parent, "rev-parse", "--show-toplevel")
    if top is None or _project_name(Path(top) / "pyproject.toml") != _PROJECT:
        return None
    if _git(module.parent, "ls-files", "--error-unmatch", "--", module.name) is None:
        return None
    return _git(module.parent, "describe", "--always", "--dirty", "--abbrev=12")


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, or None where it fails or is missing."""
    try:
        done = subprocess.run(  # noqa: S603 - arguments of this module alone
            ["git", *arguments],  # noqa: S607 - git from the PATH
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _project_name(file: Path) -> str | None:
    """The name of the project that a pyproject.toml describes; None where there is none."""
    try:
        name = tomllib.loads(file.read_text(encoding="utf-8"))["project"]["name"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return name if isinstance(name, str) else None
