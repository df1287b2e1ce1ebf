"""Arrow without pandas."""

import sys
from types import ModuleType


class _NoPandas:
    """Finds pandas missing."""

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> None:  # noqa: ARG002
        """See `importlib.abc.MetaPathFinder`."""
        if name == "pandas":
            raise ModuleNotFoundError(name)


def leave_pandas_out() -> None:
    """Keep pyarrow from importing pandas with the first array that it makes: 0.4 s and 50 MB that nobody here has a use for.

    It looks once whether pandas is there, and again only where somebody asks for a data frame.
    """
    # Imported here: the command line comes by, and its help needs no Arrow.
    import pyarrow as pa  # noqa: PLC0415

    missing = _NoPandas()
    sys.meta_path.insert(0, missing)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(missing)
