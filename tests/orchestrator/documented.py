"""The commands and snippets of the documentation, as a reader sees them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from toprovar_batch.orchestrator.cli import COMMANDS

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for name in ("README.md", "CONTRIBUTING.md", "docs/*.md", "jobs/**/README.md")
    for path in ROOT.glob(name)
)
# What tells a reader that a command is not for the machine or the moment at hand.
MARK = re.compile(r"needs? (?:a GPU|a cluster|the network)|takes? [^.:|]*\bminutes?\b")
PAGE_MARK = re.compile(r"commands? (?:of|on) this page needs? (?:a GPU|a cluster)")

_TOOLS = r"(?:toprovar-batch|python|make|pip|ray|sbatch|sky|kubectl|docker|torchrun|\.venv/bin/\S+)"
_INLINE = re.compile(rf"(?:{_TOOLS}|{'|'.join(sorted(COMMANDS, key=len, reverse=True))}|train) \S")
_COMMENT = re.compile(r"\s+#\s(.*)$")


@dataclass(frozen=True)
class Command:
    """A command as it is written somewhere.

    Attributes:
        place: file and line.
        text: the command in one line, with its shell variables filled in.
        marked: whether what stands around it says what it needs, or that it takes long.
    """

    place: str
    text: str
    marked: bool


def commands(markdown: str, page: str = "page") -> Iterator[Command]:
    """All commands of a page: those of console blocks, and those that stand in the text as code."""
    marked = PAGE_MARK.search(" ".join(markdown.split())) is not None
    for first, language, block, before in blocks(markdown):
        if language == "console":
            yield from _console(f"{page}:{first}", block, marked or MARK.search(before) is not None)
    for first, paragraph in _paragraphs(markdown):
        around = marked or MARK.search(" ".join(paragraph.split())) is not None
        for code in re.findall(r"`([^`]+)`", paragraph):
            text = " ".join(code.split())
            if _INLINE.match(text) and not _is_name(text):
                yield Command(f"{page}:{first}", text, around)


def _is_name(text: str) -> bool:
    """Whether a text is a command's name alone, such as `toprovar-batch submit` or `ray job stop`."""
    words = text.removeprefix("toprovar-batch ").split()
    named = {"make", "ray"} | ({words[0]} if text.startswith("toprovar-batch") and len(words) == 1 else set())
    return words[0] in named and all(re.fullmatch(r"[a-z-]+", word) and word[0] != "-" for word in words)


def _console(place: str, block: str, marked: bool) -> Iterator[Command]:
    """The commands of a block; a comment in a line of its own is for the lines below it."""
    variables: dict[str, str] = {}
    for line in block.replace("\\\n", " ").splitlines():
        if not line.startswith("$ "):
            continue
        comment = _COMMENT.search(line)
        text = " ".join(_COMMENT.sub("", line.removeprefix("$ ")).split())
        for name, value in variables.items():
            text = text.replace(f"${name}", value)
        if assigned := re.fullmatch(r'(\w+)="?([^"]*)"?', text):
            variables[assigned[1]] = assigned[2]
        else:
            yield Command(place, text, marked or bool(comment and MARK.search(comment[1])))


def blocks(markdown: str) -> Iterator[tuple[int, str, str, str]]:
    """The fenced blocks: number of the first line, language, text, and the paragraph before."""
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", markdown, re.MULTILINE | re.DOTALL):
        before = markdown[: match.start()].rstrip().rpartition("\n\n")[2]
        yield markdown.count("\n", 0, match.start()) + 2, match[1], match[2], " ".join(before.split())


def _paragraphs(markdown: str) -> Iterator[tuple[int, str]]:
    """Paragraphs, items of lists and rows of tables, each with the number of its first line; no fenced block."""
    text = re.sub(
        r"^```.*?^```$", lambda match: "\n" * match[0].count("\n"), markdown, flags=re.MULTILINE | re.DOTALL
    )
    number = 1
    for part in re.split(r"(\n\n+|\n(?=\s*(?:[-*] |\d+\. |\|)))", text):
        if part.strip():
            yield number, part
        number += part.count("\n")
