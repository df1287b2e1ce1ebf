"""The documentation's sentences are short and plain, for readers of all countries.

A word is whatever stands between spaces and has a letter or a digit. Code in backquotes is one word, since it is read
as one name. A link is its text. A table's cell, a heading and an item of a list each begin a sentence of their own.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_WORDS = 25
FORBIDDEN = re.compile(r"\b(wish\w*|shall|found are)\b", re.IGNORECASE)

_FENCE = re.compile(r"^\s*(```|~~~)")
_BEGINS_BLOCK = re.compile(r"^\s*(#+\s+|[-*+]\s+|\d+\.\s+|>\s*)")
_CODE = re.compile(r"(`+).+?\1", re.DOTALL)
_IMAGE_OR_LINK = re.compile(r"!?\[([^][]*)\]\([^()]*\)", re.DOTALL)
_CELL_END = re.compile(r"(?<!\\)\|")
_SENTENCE_END = re.compile(r"(?<!\be\.g)(?<!\bi\.e)[.!?][\"')*]*(?=\s|$)")


@dataclass(frozen=True)
class Sentence:
    """A sentence of a Markdown text.

    Attributes:
        line: of the text where it begins, from 1.
        text: as it is written, with single spaces.
        prose: the same without links' targets, and with code as x's.
    """

    line: int
    text: str
    prose: str

    @property
    def num_words(self) -> int:
        """Words, as this module counts them."""
        return sum(any(character.isalnum() for character in word) for word in self.prose.split())


def sentences(markdown: str) -> Iterator[Sentence]:
    """Cut a Markdown text into sentences; blocks of code are left out."""
    for first_line, block in _blocks(markdown):
        prose = _masked(block)
        ends = [match.end() for match in _SENTENCE_END.finditer(prose)]
        for after, end in zip([0, *ends], [*ends, len(prose)], strict=True):
            start = end - len(prose[after:end].lstrip())
            sentence = Sentence(
                first_line + block.count("\n", 0, start),
                " ".join(block[start:end].split()),
                " ".join(prose[start:end].split()),
            )
            if sentence.num_words:
                yield sentence


def _blocks(markdown: str) -> Iterator[tuple[int, str]]:
    """Paragraphs, headings, items of lists and cells of tables, each with the number of its first line."""
    first, lines = 1, list[str]()
    fence = ""
    for number, line in enumerate([*markdown.splitlines(), ""], start=1):
        mark = _FENCE.match(line)
        code = bool(fence or mark)
        if mark:
            fence = "" if fence == mark[1] else fence or mark[1]
        begins = _BEGINS_BLOCK.match(line)
        is_row = line.lstrip().startswith("|")
        if lines and (code or begins or is_row or not line.strip() or lines[0].startswith("#")):
            yield first, _BEGINS_BLOCK.sub("", "\n".join(lines), count=1)
            lines = []
        if code:
            continue
        if is_row:
            yield from ((number, cell) for cell in _cells(line))
        elif line.strip():
            first = first if lines else number
            lines.append(line)


def _cells(row: str) -> list[str]:
    """The cells of a table's row; a bar within code divides nothing."""
    ends = [match.start() for match in _CELL_END.finditer(_masked(row))]
    return [row[start + 1 : end] for start, end in zip(ends, [*ends[1:], len(row)], strict=True)]


def _masked(block: str) -> str:
    """The block at its length, with x's for code and spaces for links' targets, so that only prose is left."""

    def link(match: re.Match[str]) -> str:
        before = match.start(1) - match.start()
        return " " * before + match[1] + " " * (len(match[0]) - before - len(match[1]))

    masked = _CODE.sub(lambda match: re.sub(r"[^\n]", "x", match[0]).replace("\n", "x"), block)
    return _IMAGE_OR_LINK.sub(link, masked)


def faults(markdown: str) -> list[str]:
    """Say what is wrong with a Markdown text: a message for each fault, which begins with the number of the line."""
    found = []
    for sentence in sentences(markdown):
        if sentence.num_words > MAX_WORDS:
            found.append(f"{sentence.line}: {sentence.num_words} words, at most {MAX_WORDS}: {sentence.text}")
        found += [
            f"{sentence.line}: no {match[0]!r} in plain English: {sentence.text}"
            for match in FORBIDDEN.finditer(sentence.prose)
        ]
    return found


def _documents() -> list[str]:
    names = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "jobs/**/README.md")
    return sorted(str(path.relative_to(ROOT)) for name in names for path in ROOT.glob(name))


@pytest.mark.parametrize("name", _documents())
def test_every_sentence_is_short_and_plain(name):
    found = [f"{name}:{fault}" for fault in faults((ROOT / name).read_text())]
    assert not found, "\n" + "\n".join(found)


def test_the_documents_are_found():
    assert set(_documents()) > {"README.md", "docs/architecture.md", "jobs/cluster/README.md"}


WORDS = " ".join(["word"] * MAX_WORDS)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"{WORDS} more.", 1),
        (f"Short.\nShort, too. {WORDS}\nmore.", 2),
        (f"# Heading\n- item\n- {WORDS}\n  more\n", 3),
        (f"| a | b |\n| --- | --- |\n| short | {WORDS} more |", 3),
        (f"```\ncode\n```\n{WORDS} [more](address)", 4),
        (f"{WORDS} `more`", 1),
        (f"{WORDS} 0.5 more", 1),
        (f"{WORDS}; more.", 1),
        (f"1. One.\n2. {WORDS} more.", 2),
    ],
)
def test_a_long_sentence_is_found_at_its_line(text, line):
    (fault,) = faults(text)
    assert fault.startswith(f"{line}: ")
    assert f"at most {MAX_WORDS}: " in fault
    assert "more" in fault


@pytest.mark.parametrize(
    "text",
    [
        f"{WORDS}.",
        f"{WORDS}. {WORDS}",
        f"{WORDS}\n\n{WORDS}",
        f"# {WORDS}\n{WORDS}",
        f"- {WORDS}\n- {WORDS}",
        f"| {WORDS} | {WORDS} |",
        f"```\n{WORDS} more\n```",
        f"{WORDS} + = ± -",
        f"{WORDS}! **{WORDS}?** {WORDS}",
        f"word {' '.join(['word'] * (MAX_WORDS - 2))} `one name | of many words`",
        f"[{WORDS}](a/long-address.md#place)",
        f"![{WORDS}](picture.jpg)\n\n{WORDS}",
    ],
)
def test_short_sentences_pass(text):
    assert faults(text) == []


@pytest.mark.parametrize("text", ["As wished.", "It\nShall be.", "- Found are many.", "| so | it shall |"])
def test_a_word_that_is_not_plain_is_found(text):
    (fault,) = faults(text)
    assert "in plain English" in fault


@pytest.mark.parametrize(
    "text", ["`shall`", "marshall", "[it](wished.md)", "```\nwished\n```", "We found. Are you?"]
)
def test_what_is_not_prose_may_hold_any_word(text):
    assert faults(text) == []
