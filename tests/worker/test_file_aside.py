"""Unfinished files in the system's temporary folder, which many processes and users share."""

import errno
import fcntl
import os
import subprocess
import sys
import tempfile

import fsspec
import pytest

from toprovar_batch.worker.file_aside import FileAside
from toprovar_batch.worker.part_file import PartWriter, dataset_schema, publish_bytes

SCHEMA = dataset_schema(())


@pytest.fixture
def system_folder(tmp_path, monkeypatch):
    folder = tmp_path / "system"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def orphan(system_folder):
    """The unfinished part of a process that was killed."""
    code = (
        "import os\n"
        "from toprovar_batch.worker.part_file import PartWriter, dataset_schema\n"
        "with PartWriter('memory://out/part.parquet', dataset_schema(())): os.kill(os.getpid(), 9)"
    )
    environment = os.environ | {"TMPDIR": str(system_folder)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == -9
    (path,) = system_folder.iterdir()
    return path


def test_the_unfinished_part_of_a_killed_process_is_swept_by_the_next(system_folder, orphan):
    with PartWriter("memory://out/part.parquet", SCHEMA):
        assert not orphan.exists()
        assert len(list(system_folder.iterdir())) == 1
    assert not list(system_folder.iterdir())


def test_the_unfinished_parts_of_living_jobs_stay(system_folder):
    memory = fsspec.filesystem("memory")
    with PartWriter("memory://living/a.parquet", SCHEMA) as first:
        with PartWriter("memory://living/b.parquet", SCHEMA) as second:
            publish_bytes(b"record", memory, "/living/c.json", None)
            second.publish({})
        first.publish({})
    assert sorted(memory.ls("/living", detail=False)) == [
        f"/living/{name}" for name in ("a.parquet", "b.parquet", "c.json")
    ]
    memory.rm("/living", recursive=True)
    assert not list(system_folder.iterdir())


def test_files_of_others_stay(system_folder, orphan, monkeypatch):
    (system_folder / "thesis.tmp").touch()
    outside = system_folder.parent / "outside"
    outside.touch()
    (system_folder / "toprovar-batch-link.tmp").symlink_to(outside)
    (system_folder / "toprovar-batch-folder.tmp").mkdir()
    another = orphan.stat().st_uid + 1
    monkeypatch.setattr(os, "getuid", lambda: another)
    before = sorted(system_folder.iterdir())
    with FileAside("part", None) as own:
        assert sorted(system_folder.iterdir()) == sorted([*before, own])
    assert outside.exists()


def test_without_locks_nothing_is_swept(system_folder, orphan, monkeypatch):
    def refuse(_file, _operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with FileAside("part", None):
        assert orphan.exists()
    assert list(system_folder.iterdir()) == [orphan]


def test_a_pipe_of_that_name_holds_nobody_up(system_folder):
    os.mkfifo(system_folder / "toprovar-batch-pipe.tmp")
    with FileAside("part", None) as own:
        assert own.exists()


def test_a_file_aside_is_its_users_alone(system_folder):
    with FileAside("part", None) as own:
        assert own.stat().st_mode & 0o077 == 0
