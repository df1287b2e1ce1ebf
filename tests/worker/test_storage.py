"""Addresses: which are local, what they are made into, and which are refused."""

import os
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from toprovar_batch.worker.storage import absolute, is_url, locate, read_bytes


@pytest.mark.parametrize("name", ["a::b", "file::x", "memory::x", "a b:c", "x [1]/*.txt", "file:x"])
def test_a_local_name_is_taken_as_it_is(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert not is_url(name)
    for address in (name, str(tmp_path / name), f"file://{tmp_path}/{name}"):
        filesystem, path = locate(address)
        assert isinstance(filesystem, LocalFileSystem)
        assert path == str(tmp_path / name)


@pytest.mark.parametrize("url", ["memory://a::b", "simplecache::memory://a", "zip://a::/tmp/x.zip"])
def test_a_url_with_two_colons_is_refused(url):
    with pytest.raises(ValueError, match="holds ::, which is refused in a URL"):
        locate(url)


def test_home_folders_are_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("~/x")[1] == locate("file://~/x")[1] == absolute("~/x", Path("/y")) == str(tmp_path / "x")
    with pytest.raises(ValueError, match=r"no home folder is known for ~nobody99; write \./~nobody99"):
        locate("~nobody99/x")


def test_a_pipe_is_read():
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as file:
        file.write(b"name: x")
    assert read_bytes(f"/dev/fd/{reader}") == b"name: x"
    os.close(reader)
