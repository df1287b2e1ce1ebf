"""Every Python and SQL snippet of the documentation and of a dataset's card runs, over a dataset made here."""

import re

import datasets
import duckdb
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from toprovar_batch.orchestrator.cli import main
from toprovar_batch.worker.pruning.pruning_map import read_pruning_map

from .documented import PAGES, ROOT, blocks

JOB = """
prompts: {source: prompts.jsonl}
model: {random_weights: true, architecture: {depth: 2, width: 64, num_heads: 2}}
image: {resolution: 0.06M}
policy: {name: detail, pruning_map: true}
output: OUTPUT
shard_size: 1
runtime: {device: cpu, num_workers: 1}
"""
SNIPPETS = [
    (page, language, text)
    for page in PAGES
    for _, language, text, _ in blocks((ROOT / page).read_text())
    if language in {"python", "sql"}
]


@pytest.fixture(scope="module")
def made(tmp_path_factory, ray_cluster):
    """A folder with a finished dataset of an error row, which comes first, and one picture, OUTPUT."""
    folder = tmp_path_factory.mktemp("snippets")
    (folder / "prompts.jsonl").write_text(
        '{"prompt": "", "category": "none"}\n{"prompt": "a red sphere", "category": "simple"}\n'
    )
    (folder / "job.yaml").write_text(JOB)
    done = CliRunner().invoke(main, ["submit", str(folder / "job.yaml"), "--output", str(folder / "OUTPUT")])
    assert done.exit_code == 0, done.output
    return folder / "OUTPUT"


@pytest.fixture
def dataset(made, monkeypatch):
    """The same, from the folder that it lies in."""
    monkeypatch.chdir(made.parent)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", made.parent / "cache")
    monkeypatch.setattr(Image.Image, "show", lambda image: None)  # a card shows the first picture
    return made


def test_the_languages_of_the_documentations_blocks_are_known():
    known = {"python", "sql", "console", "yaml", ""}
    assert {language for page in PAGES for _, language, _, _ in blocks((ROOT / page).read_text())} <= known
    assert len(SNIPPETS) >= 6


@pytest.mark.slow
def test_every_snippet_runs_over_a_dataset(dataset):
    part, _ = sorted((dataset / "data").iterdir())
    names: dict[str, object] = {}
    for page, language, text in SNIPPETS:
        here = text.replace("outputs/my-images", "OUTPUT").replace("part-00000-of-00012.parquet", part.name)
        if language == "sql":
            found = duckdb.sql(here).fetchall()
            assert [row[:3] for row in found] == [("none", 1, 1), ("simple", 1, 0)], page
        else:
            exec(compile(here, page, "exec"), names)
    assert len(names["images"]) == 2
    assert len(names["good"]) == 1
    with Image.open("first.png") as image:
        assert image.size == (256, 256)
    assert [path.suffix for path in (dataset.parent / "images").iterdir()] == [".png"]
    assert names["scales"][-1].shape == (16, 16)


@pytest.mark.slow
def test_other_readers_take_the_folder_of_the_parts(dataset):
    page = (ROOT / "docs/dataset.md").read_text()
    [call] = set(re.findall(r"`(pandas\.read_parquet\([^`]*\))`", page))
    assert len(eval(call, {"pandas": pd})) == 2
    card = (dataset / "README.md").read_text()
    assert "pandas and polars take the folder `data`, DuckDB the files `data/*.parquet`" in card
    assert len(pd.read_parquet(dataset / "data")) == 2
    assert len(duckdb.sql(f"SELECT sample_id FROM '{dataset}/data/*.parquet'").fetchall()) == 2


@pytest.mark.slow
def test_the_card_reads_a_pruning_map_without_this_package(dataset):
    card = (dataset / "README.md").read_text()
    names: dict[str, object] = {}
    for _, language, text, _ in blocks(card):
        assert language == "python"
        assert "toprovar" not in text
        exec(text.replace("path/of/this/folder", str(dataset)), names)
    row = names["row"]
    ours = read_pruning_map(row["pruning_map"], row["h_div_w"], len(row["keep_ratio"]))[-1]
    assert (names["layers"] == ours).all()
    for column in names["images"].column_names:
        assert f"| `{column}` |" in card
