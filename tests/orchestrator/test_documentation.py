"""docs/job-file.md and docs/dataset.md beside the code, key by key and column by column."""

import re
from dataclasses import fields
from datetime import UTC, datetime
from typing import Literal, Union, get_args, get_origin

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from toprovar_batch.orchestrator.job.spec import JobSpec
from toprovar_batch.orchestrator.run.outcome import Outcome
from toprovar_batch.orchestrator.run.record import run_record
from toprovar_batch.orchestrator.run.summary import RunSummary
from toprovar_batch.worker.part_file import CHECKSUM, dataset_schema
from toprovar_batch.worker.shard_stats import ShardStats

UNSET = {"null", "the preset's", "the file's name without extension"}  # how a default of None is written
ARROW_NAMES = {
    "double": "float64",
    "list<item: float>": "list of float32",
    "struct<bytes: binary, path: string>": "struct{bytes, path}",
}


@pytest.fixture
def read(pytestconfig):
    return lambda name: (pytestconfig.rootpath / "docs" / name).read_text(encoding="utf-8")


def table_rows(text, *heading):
    """The cells of every row of the tables that begin with these columns, each with the bold name before its table."""
    name, inside = None, False
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if match := re.match(r"(?:## |\*\*)`(\w+)`", line):
            name, inside = match[1], False
        elif not line.startswith("|"):
            inside = False
        elif tuple(cells[: len(heading)]) == heading:
            inside = True
        elif inside and not cells[0].startswith("---"):
            yield name, cells


def keys(cell):
    return re.findall(r"`([\w.]+)`", cell)


def models_in(annotation):
    """The specs that a key's type allows."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]


def choices(annotation):
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    if get_origin(annotation) in {Union, type(int | None)}:
        return [choice for part in get_args(annotation) for choice in choices(part)]
    return []


def job_keys(model=JobSpec, prefix=""):
    """(policy or None, dotted key) -> field; the groups themselves are keys at the top alone."""
    found = {}
    for name, field in model.model_fields.items():
        path = prefix + name
        specs = models_in(field.annotation)
        if path == "policy":
            found[None, path] = field
            for spec in specs:
                policy = spec.model_fields["name"].default
                found |= {(policy, f"policy.{key}"): inner for key, inner in spec.model_fields.items()}
        elif specs:
            found[None, path] = field
            for _, key in (inner := job_keys(specs[0], f"{path}.")):
                found[None, key] = inner[None, key]
        else:
            found[None, path] = field
    return found


def documented_keys(text):
    """(policy or None, dotted key) -> the cells of type and default."""
    found = {}
    for name, cells in table_rows(text, "key", "type", "default"):
        for key in keys(cells[0]):
            policy = name if key.startswith("policy.") and name != "policy" else None
            assert (policy, key) not in found, f"{key} is there twice"
            found[policy, key] = cells[1:3]
    return found


def described(documented, policy, key):
    return documented.get((policy, key)) or documented.get((None, key))


def test_every_key_is_documented_with_its_default_and_choices(read):
    documented = documented_keys(read("job-file.md"))
    for (policy, key), field in job_keys().items():
        cells = described(documented, policy, key)
        assert cells is not None, f"{key} of {policy} is missing"
        kind, default = cells
        for choice in choices(field.annotation):
            assert f"`{choice}`" in kind, f"{key}: {choice} is no documented value"
        if models_in(field.annotation) or (policy is not None and key == "policy.name"):
            continue  # a group has no default of its own; a policy's name is what chooses it
        assert shown_default(field, policy) & written_defaults(default, policy), (
            f"{key} of {policy}: {default}"
        )


def shown_default(field, policy):
    if field.default is PydanticUndefined:
        return {"required", ""}
    value = field.default
    if value is None:
        return UNSET
    if isinstance(value, bool):
        return {str(value).lower()}
    return {str(list(value)) if isinstance(value, tuple) else str(value)}


def written_defaults(cell, policy):
    """What a cell gives as default; where it reads "a, of `policy` b", that policy's is b."""
    if own := re.search(rf"of `{policy}` `([^`]+)`", cell):
        return {own[1]}
    return {cell.partition(", of ")[0].strip("`")}


def test_no_documented_key_is_unknown(read):
    known = job_keys()
    names = {key for _, key in known}
    for policy, key in documented_keys(read("job-file.md")):
        assert (policy, key) in known or (policy is None and key in names), f"{key} of {policy}"


def test_every_column_is_documented_in_its_place_with_its_type(read):
    written = []
    for _, (names, kinds, *_) in table_rows(read("dataset.md"), "column", "type"):
        types = kinds.split(", ") if len(keys(names)) > 1 and "{" not in kinds else [kinds]
        written += [(name, types[min(at, len(types) - 1)]) for at, name in enumerate(keys(names))]
    expected = [
        (field.name, ARROW_NAMES.get(str(field.type), str(field.type))) for field in dataset_schema([])
    ]
    given = [("prompt_id", "string"), ("image_index", "int32")]  # where a prompt gives several samples
    assert written == expected[:3] + given + expected[3:]


def test_every_key_of_a_footer_is_documented(read):
    footer = read("dataset.md").partition("## A part's footer")[2]
    written = [key for _, cells in table_rows(footer, "key", "meaning") for key in keys(cells[0])]
    added = ["shard_id", "schema_version", CHECKSUM]
    assert sorted(written) == sorted([*added, *(item.name for item in fields(ShardStats))])


def test_every_key_of_a_record_is_documented(read):
    summary = RunSummary("out", 0, 0, ShardStats(), ShardStats(), 0, 0.0, 0, 0)
    record = run_record(summary, Outcome(), datetime.now(UTC))
    written = [
        key for _, cells in table_rows(read("dataset.md"), "key of a record") for key in keys(cells[0])
    ]
    assert sorted(written) == sorted(record)


def test_the_counts_above_the_demos_pictures_are_of_all_its_prompts(pytestconfig):
    readme = (pytestconfig.rootpath / "README.md").read_text(encoding="utf-8")
    rows = [cells for _, cells in table_rows(readme, "the demo asks for", "pictures", "right")]
    prompts = (pytestconfig.rootpath / "jobs/prompts/demo.jsonl").read_text().splitlines()
    pictures, right = (sum(int(cells[column]) for cells in rows) for column in (1, 2))
    assert pictures == len(prompts)
    assert f"passes {right} of these {pictures}:" in readme
    assert readme.index("passes") < readme.index("docs/images/demo.jpg")


def anchors(markdown):
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", markdown, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w -]", "", title.replace("`", "")).lower().replace(" ", "-") for title in titles}


def test_every_link_within_the_documentation_leads_somewhere(pytestconfig):
    root = pytestconfig.rootpath
    pages = [path for name in ("*.md", "docs/*.md", "jobs/**/*.md") for path in root.glob(name)]
    broken = []
    for page in pages:
        for link in re.findall(r"\]\(([^()\s]+)\)", page.read_text(encoding="utf-8")):
            name, _, anchor = link.partition("#")
            if "://" in link:
                continue
            target = (page.parent / name).resolve() if name else page
            if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
                broken.append(f"{page.relative_to(root)}: {link}")
    assert not broken, broken
