"""The folders import one way: kernels <- worker <- orchestrator; and Ray stays where it belongs."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "kernels": {"kernels"},
    "worker": {"kernels", "worker"},
    "orchestrator": {"kernels", "worker", "orchestrator"},
}
# The rooms of the driver, lowest first; a room may import those before it. `benchmark` knows none of them.
TOWER = ("job", "prompts", "output", "run", "evaluation", "calibration", "commands")
MAX_LINES = 350
LONGER: set[str] = set()  # only what is one kernel or one model
MAY_USE_RAY = {
    "orchestrator/run/fleet.py",
    "orchestrator/run/job_server.py",
    "orchestrator/run/metrics.py",
    "orchestrator/run/ray_session.py",
}


def _imports(path):
    """Absolute names of all modules a file imports; what comes `from` a module may be one, too."""
    return _imports_of(path.read_text(), ["toprovar_batch", *path.relative_to(ROOT).parts[:-1]])


def _imports_of(text, package):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, node.module or ""]).strip(".")
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _sources(folder):
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_point_one_way(folder):
    assert _sources(folder)
    for path in _sources(folder):
        for name in _imports(path):
            parts = name.split(".")
            if parts[0] == "toprovar_batch" and len(parts) > 1 and parts[1] in MAY_IMPORT:
                assert parts[1] in MAY_IMPORT[folder], f"{path.relative_to(ROOT)} imports {name}"


def test_the_model_knows_no_job():
    assert _sources("worker/infinity")
    for path in _sources("worker/infinity"):
        for name in _imports(path):
            parts = name.split(".")
            if parts[:2] == ["toprovar_batch", "worker"] and len(parts) > 2:
                assert parts[2] in {"errors", "infinity"}, f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("room", TOWER)
def test_the_rooms_of_the_driver_stand_on_each_other(room):
    below = TOWER[: TOWER.index(room) + 1]
    assert _sources(f"orchestrator/{room}")
    for path in _sources(f"orchestrator/{room}"):
        for name in _imports(path):
            parts = name.split(".")
            if parts[:2] == ["toprovar_batch", "orchestrator"] and len(parts) > 2 and parts[2] in TOWER:
                assert parts[2] in below, f"{path.relative_to(ROOT)} imports {name}"


def test_every_room_of_the_driver_has_its_floor():
    rooms = {
        path.name
        for path in (ROOT / "orchestrator").iterdir()
        if path.is_dir() and path.name != "__pycache__"
    }
    assert rooms == {*TOWER, "benchmark"}


def test_no_module_is_too_long():
    long = {
        str(path.relative_to(ROOT))
        for folder in MAY_IMPORT
        for path in _sources(folder)
        if len(path.read_text().splitlines()) > MAX_LINES
    }
    assert long <= LONGER


@pytest.mark.parametrize(
    "line",
    [
        "import toprovar_batch.orchestrator",
        "from toprovar_batch import orchestrator",
        "from toprovar_batch.orchestrator import job",
        "from .. import orchestrator",
        "from ..orchestrator.job import JobSpec",
    ],
)
def test_every_way_to_import_a_folder_is_seen(line):
    names = list(_imports_of(line, ["toprovar_batch", "worker"]))
    assert any(f"{name}.".startswith("toprovar_batch.orchestrator.") for name in names)


def test_only_the_driver_knows_ray():
    users = {
        str(path.relative_to(ROOT))
        for folder in MAY_IMPORT
        for path in _sources(folder)
        if any(name.split(".")[0] == "ray" for name in _imports(path))
    }
    assert users <= MAY_USE_RAY


def test_the_package_links_to_the_folders():
    for folder in MAY_IMPORT:
        link = ROOT / "src" / "toprovar_batch" / folder
        assert link.is_symlink()
        assert link.resolve() == ROOT / folder
        assert not (ROOT / folder / "__init__.py").exists()  # it would shadow packages of the same name
