"""Words for people."""

import re
from pathlib import Path

import pytest

import toprovar_batch
from toprovar_batch.worker.words import counted, nearest


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 images"), (1, "1 image"), (2, "2 images"), (1000, "1,000 images")]
)
def test_a_noun_follows_its_number(count, text):
    assert counted(count, "image") == text
    assert counted(count, "image is", "images are").startswith(text)


def test_only_what_is_spelled_alike_is_near():
    assert nearest("Infinty-2B", ["tiny", "infinity-2b"]) == "infinity-2b"
    assert nearest("foo", ["tiny", "infinity-2b"]) is None


def test_the_driver_writes_no_number_before_a_fixed_plural():
    fixed = re.compile(
        r"\{[^{}]*\} (images|samples|workers|shards|prompts|parts|pictures|threads|fields)\b(?!/| per )"
    )
    package = Path(toprovar_batch.__file__).parent
    found = [
        f"{path.name}: {line.strip()}"
        for path in sorted((package / "orchestrator").resolve().rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if fixed.search(line) and "num_rows > 1" not in line
    ]
    assert found == []
