"""Packed weights come back to the byte, once, and a damaged file is named."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from click.testing import CliRunner

from toprovar_batch.worker import packed_weights
from toprovar_batch.worker.errors import CheckpointError
from toprovar_batch.worker.fetch import fetch
from toprovar_batch.worker.packed_weights import SUFFIX, main, pack, unpack, unpacked


def _numbers(count, seed=0):
    """Bytes of bfloat16 numbers as weights have them: of few sizes, with any digits."""
    values = np.random.default_rng(seed).normal(scale=0.02, size=count).astype(np.float32)
    return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()


@pytest.fixture
def folder(tmp_path):
    """A packed folder of two weight files and a config."""
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.safetensors").write_bytes(_numbers(1000))
    (folder / "sub" / "b.safetensors").write_bytes(_numbers(3, seed=1))
    (folder / "config.json").write_text("{}")
    assert CliRunner().invoke(main, [str(folder)]).exit_code == 0
    return folder


@pytest.mark.parametrize("count", [0, 1, 7, 200_000])
def test_bytes_come_back(tmp_path, count):
    source, packed, back = (tmp_path / name for name in ("source", "packed", "back"))
    source.write_bytes(_numbers(count))
    pack(source, packed)
    unpack(packed, back)
    assert back.read_bytes() == source.read_bytes()


def test_bfloat16_numbers_take_less_room(tmp_path):
    source, packed = tmp_path / "source", tmp_path / "packed"
    source.write_bytes(_numbers(200_000))
    pack(source, packed)
    assert packed.stat().st_size < 0.75 * source.stat().st_size


def test_half_a_number_is_refused(tmp_path):
    (tmp_path / "odd").write_bytes(b"abc")
    with pytest.raises(ValueError, match=r"odd: 3 bytes"):
        pack(tmp_path / "odd", tmp_path / "packed")


def test_a_folder_comes_back_whole_under_its_own_name(folder, tmp_path):
    assert not (folder / "a.safetensors").exists()
    copy = unpacked(folder, tmp_path / "cache")
    assert copy.name == folder.name
    assert {str(file.relative_to(copy)) for file in copy.rglob("*") if file.is_file()} == {
        "a.safetensors",
        "sub/b.safetensors",
        "config.json",
    }
    assert (copy / "a.safetensors").read_bytes() == _numbers(1000)


def test_what_is_not_packed_stays_where_it_is(tmp_path):
    (tmp_path / "plain.safetensors").write_bytes(b"ab")
    assert unpacked(tmp_path / "plain.safetensors", tmp_path / "cache") is None
    assert unpacked(tmp_path / "nothing", tmp_path / "cache") is None


def test_other_content_gets_another_copy(folder, tmp_path):
    first = unpacked(folder, tmp_path / "cache")
    (tmp_path / "new").write_bytes(_numbers(1000, seed=2))
    pack(tmp_path / "new", folder / f"a.safetensors{SUFFIX}")
    second = unpacked(folder, tmp_path / "cache")
    assert first != second
    assert (first / "a.safetensors").read_bytes() == _numbers(1000)


def test_processes_that_start_together_unpack_once(folder, tmp_path, monkeypatch, lock_after_all):
    asked = lock_after_all(8)
    calls = []
    monkeypatch.setattr(packed_weights, "unpack", lambda *paths: calls.append(1) or unpack(*paths))
    with ThreadPoolExecutor(8) as pool:
        copies = set(pool.map(lambda _: unpacked(folder, tmp_path / "cache"), range(8)))
    assert len(asked) == 8
    assert len(copies) == 1
    assert len(calls) == 2  # its two weight files


def test_a_damaged_file_is_named_and_leaves_no_copy(folder, tmp_path, monkeypatch):
    packed = folder / f"a.safetensors{SUFFIX}"
    content = bytearray(packed.read_bytes())
    content[len(content) // 3] ^= 1
    packed.write_bytes(content)
    monkeypatch.setenv("TOPROVAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("toprovar_batch.worker.fetch._PACKAGE_FOLDER", tmp_path)
    with pytest.raises(CheckpointError, match=r"^package://model: cannot be unpacked into .*TOPROVAR_CACHE"):
        fetch("package://model")
    assert not list((tmp_path / "cache").glob("*/model"))


def test_a_cache_that_cannot_be_written_is_named(folder, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file stands in the way")
    monkeypatch.setenv("TOPROVAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("toprovar_batch.worker.fetch._PACKAGE_FOLDER", tmp_path)
    with pytest.raises(
        CheckpointError, match=r"cannot be unpacked .*name a writable folder by TOPROVAR_CACHE"
    ):
        fetch("package://model")
