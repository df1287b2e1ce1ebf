import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from toprovar_batch.worker.part_reader import open_parquet


class Watched(LocalFileSystem):
    """Remembers which threads read."""

    def __init__(self):
        super().__init__()
        self.threads = set()

    def open(self, path, mode):
        file, threads = super().open(path, mode), self.threads

        class Spy:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

            def __getattr__(self, name):
                threads.add(threading.get_ident())
                return getattr(file, name)

        return Spy()


@pytest.mark.parametrize(
    "read",
    [
        lambda part: part.read(),
        lambda part: part.read(columns=["a", "b"]),
        lambda part: part.read_row_group(0),
        lambda part: list(part.iter_batches(batch_size=2)),
    ],
)
def test_no_other_thread_holds_a_file_that_is_read(tmp_path, read):
    """A thread of Arrow's that lets go of it while Python ends takes the process down: exit code -6 after all is said."""
    path = str(tmp_path / "part.parquet")
    pq.write_table(pa.table({name: list(range(9)) for name in "abcdefgh"}), path)
    filesystem = Watched()
    with open_parquet(filesystem, path) as part:
        read(part)
    assert filesystem.threads == {threading.get_ident()}
