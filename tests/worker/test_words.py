"""Words for people."""

import re
from pathlib import Path

import pytest

import toprovar_batch
from toprovar_batch.worker.words import counted, nearest, with_error


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 images"), (1, "1 image"), (2, "2 images"), (1000, "1,000 images")]
)
def test_a_noun_follows_its_number(count, text):
    assert counted(count, "image") == text
    assert counted(count, "image is", "images are").startswith(text)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.0581, 0.058, "0.058 ± 0.058"),
        (12.345, 1.234, "12.3 ± 1.2"),
        (123.4, 56.0, "123 ± 56"),
        (0.5, None, "0.5"),
        (0.5, 0.0, "0.5"),
    ],
)
def test_a_value_has_as_many_digits_as_its_error(value, error, text):
    assert with_error(value, error) == text


def test_only_what_is_spelled_alike_is_near():
    assert nearest("Infinty-2B", ["tiny", "infinity-2b"]) == "infinity-2b"
    assert nearest("foo", ["tiny", "infinity-2b"]) is None


def test_the_driver_writes_no_number_before_a_fixed_plural():
    fixed = re.compile(
        r"\{[^{}]*\} (images|samples|workers|shards|prompts|parts|pictures|threads|fields|batches|attempts|times|CPUs|GPUs|free CPUs|files|combinations)\b(?!/| per )"
    )
    package = Path(toprovar_batch.__file__).parent
    found = [
        f"{path.name}: {line.strip()}"
        for path in sorted((package / "orchestrator").resolve().rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if fixed.search(line) and " > 1 else " not in line
    ]
    assert found == []
