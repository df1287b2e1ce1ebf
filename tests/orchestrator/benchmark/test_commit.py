"""The commit of a measurement is that of this package, not of whatever repository surrounds it."""

import os
import shutil
import subprocess

import pytest

from toprovar_batch.orchestrator.benchmark.commit import describe_commit

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
OWN = '[project]\nname = "toprovar-batch"\n'


@pytest.fixture
def commit(tmp_path, monkeypatch):
    """Makes `tmp_path` a repository with one commit of some of its files."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    def git(*arguments):
        identity = ("-c", "user.name=n", "-c", "user.email=e@example.org")
        done = subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)
        return done.stdout.decode().strip()

    def make(*files):
        git("init", "--quiet")
        git("add", "--force", *files)
        git("commit", "--quiet", "--message", "first")
        return git("rev-parse", "--short=12", "HEAD")

    return make


def _write(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_checkout_of_this_package_is_named_and_its_changes_are_marked(tmp_path, commit):
    _write(tmp_path / "pyproject.toml", OWN)
    module = _write(tmp_path / "orchestrator/benchmark/commit.py")
    link = tmp_path / "src"
    link.symlink_to(tmp_path / "orchestrator")
    named = commit("pyproject.toml", "orchestrator")
    assert describe_commit(module) == describe_commit(link / "benchmark/commit.py") == named
    _write(module, "changed")
    assert describe_commit(module) == f"{named}-dirty"


@pytest.mark.parametrize("pyproject", ['[project]\nname = "other"\n', "[tool.x]\n", "[broken", None])
def test_a_repository_of_another_project_is_not_named(tmp_path, commit, pyproject):
    module = _write(tmp_path / "vendored/toprovar_batch/commit.py")
    if pyproject is not None:
        _write(tmp_path / "pyproject.toml", pyproject)
    commit(".")
    assert describe_commit(module) is None


def test_an_installation_below_a_checkout_is_not_named(tmp_path, commit):
    _write(tmp_path / "pyproject.toml", OWN)
    module = _write(tmp_path / ".venv/lib/site-packages/toprovar_batch/commit.py")
    commit("pyproject.toml")
    assert describe_commit(module) is None


def test_no_repository_has_no_commit(tmp_path, commit):
    assert describe_commit(_write(tmp_path / "commit.py")) is None
