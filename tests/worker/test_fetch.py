"""Weights from local paths, URLs and the hub."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from toprovar_batch.worker.errors import CheckpointError
from toprovar_batch.worker.fetch import fetch
from toprovar_batch.worker.reference.scoring import scorer


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TOPROVAR_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def memory():
    file_system = fsspec.filesystem("memory")
    file_system.pipe("/weights/a.bin", b"a")
    file_system.pipe("/weights/shards/index.json", b"{}")
    file_system.pipe("/weights/shards/1.bin", b"one")
    yield file_system
    file_system.rm("/weights", recursive=True)


def test_local_paths_are_taken_as_they_are(tmp_path):
    assert fetch(str(tmp_path / "w.pth")) == tmp_path / "w.pth"


def test_what_comes_with_the_package_is_found_beside_its_code():
    path = fetch("package://worker/reference/scoring/scorer.py")
    assert path.is_absolute()
    assert path.samefile(scorer.__file__)


def test_what_the_package_lacks_is_named():
    with pytest.raises(CheckpointError, match=r"^package://worker/none: not part of this installation"):
        fetch("package://worker/none")


def test_a_url_is_copied_once(memory, monkeypatch):
    path = fetch("memory://weights/a.bin")
    assert path.name == "a.bin"
    assert path.read_bytes() == b"a"
    monkeypatch.setattr(type(memory), "get_file", None)  # a second copy would fail
    assert fetch("memory://weights/a.bin") == path


def test_a_folder_of_shards_keeps_its_names(memory):
    path = fetch("memory://weights/shards")
    assert {file.name: file.read_bytes() for file in path.iterdir()} == {"index.json": b"{}", "1.bin": b"one"}


def test_a_failed_copy_leaves_nothing_behind(memory, monkeypatch, tmp_path):
    def broken(_self, _source, place, **_options):
        Path(place).write_bytes(b"half")
        raise OSError("connection lost")

    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "get_file", broken)
        with pytest.raises(CheckpointError, match="connection lost"):
            fetch("memory://weights/a.bin")
    whole = [
        path
        for path in (tmp_path / "cache").rglob("*")
        if path.name == "a.bin" and "partial" not in path.parts
    ]
    assert not whole
    assert fetch("memory://weights/a.bin").read_bytes() == b"a"


@pytest.mark.parametrize("location", ["memory://weights/none.bin", "nosuch://x/y", "hf://owner"])
def test_what_cannot_be_had_is_named(location):
    with pytest.raises(CheckpointError, match=location):
        fetch(location)


def test_hub_files_come_through_the_hub_cache(monkeypatch, tmp_path):
    asked = {}

    def snapshot(repository, allow_patterns):
        asked[repository] = allow_patterns
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert fetch("hf://FoundationVision/Infinity/infinity_8b_weights") == tmp_path / "infinity_8b_weights"
    assert asked == {"FoundationVision/Infinity": ["infinity_8b_weights", "infinity_8b_weights/*"]}


def test_workers_that_start_together_fetch_once(memory, monkeypatch):
    calls = []
    copy = type(memory).get_file

    def counted(self, source, place, **options):
        calls.append(source)
        copy(self, source, place, **options)

    monkeypatch.setattr(type(memory), "get_file", counted)
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(fetch, ["memory://weights/shards"] * 8))
    assert len(paths) == 1
    assert len(calls) == 2  # its two files


def test_a_query_does_not_become_part_of_the_name(memory):
    memory.pipe("/weights/q.safetensors?download=true", b"q")
    assert fetch("memory://weights/q.safetensors?download=true").name == "q.safetensors"
