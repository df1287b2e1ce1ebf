import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from toprovar_batch.worker.whole_file import whole_file, write_whole


def test_a_file_appears_whole_and_nothing_stays_beside_it(tmp_path):
    target = tmp_path / "new.txt"
    with whole_file(target) as path:
        path.write_text("half")
        assert not target.exists()
        path.write_text("whole")
    assert target.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [target]


@pytest.fixture
def orphan(tmp_path):
    """What a process that was killed while it wrote has left beside its target."""
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from toprovar_batch.worker.whole_file import whole_file\n"
        "with whole_file(Path(sys.argv[1])) as path: path.write_text('half') and os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "killed.txt")]
    assert subprocess.run(command, check=False).returncode == -9
    (path,) = tmp_path.iterdir()
    return path


def test_what_a_killed_process_left_is_removed_by_the_next_that_writes_there(tmp_path, orphan):
    write_whole(tmp_path / "new.txt", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["new.txt"]


def test_what_living_processes_write_stays(tmp_path):
    with whole_file(tmp_path / "slow.txt") as path:
        path.write_text("slow")
        write_whole(tmp_path / "quick.txt", "quick")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["quick.txt", "slow.txt"]
    assert (tmp_path / "slow.txt").read_text() == "slow"


def test_what_another_machine_left_stays(tmp_path, orphan, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    write_whole(tmp_path / "new.txt", "new")
    assert orphan.exists()


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_file_that_is_there_outlives_a_failure(tmp_path, failure):
    target = tmp_path / "old.txt"
    target.write_text("old")
    with pytest.raises(failure), whole_file(target) as path:
        raise path.write_text("half") and failure
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_link_stays_a_link_and_a_file_keeps_its_mode(tmp_path):
    (tmp_path / "there").mkdir()
    place, link = tmp_path / "there/file.txt", tmp_path / "link.txt"
    place.write_text("old")
    place.chmod(0o604)
    link.symlink_to(place)
    write_whole(link, "new")
    assert link.is_symlink()
    assert place.read_text() == "new"
    assert stat.S_IMODE(place.stat().st_mode) == 0o604


def test_a_new_file_has_the_mode_of_any_other(tmp_path):
    write_whole(tmp_path / "a.txt", "x")
    (tmp_path / "b.txt").write_text("x")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


def test_a_name_as_long_as_the_file_system_takes_can_be_written(tmp_path):
    write_whole(tmp_path / ("x" * 255), "long")
    assert (tmp_path / ("x" * 255)).read_text() == "long"


def test_a_missing_folder_is_not_made(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        write_whole(tmp_path / "none/a.txt", "x")
    assert not list(tmp_path.iterdir())


def test_a_read_only_file_is_not_replaced(tmp_path, monkeypatch):
    target = tmp_path / "old.txt"
    target.write_text("old")
    monkeypatch.setattr(
        os, "access", lambda path, _mode: path != target
    )  # as it is for users other than root
    with pytest.raises(PermissionError):
        write_whole(target, "new")
    assert target.read_text() == "old"


def test_what_is_no_file_is_written_itself():
    write_whole(Path(os.devnull), "gone")
    assert Path(os.devnull).is_char_device()
