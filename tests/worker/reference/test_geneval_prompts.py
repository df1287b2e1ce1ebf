"""The prompt file of the evaluation job."""

import json
from collections import Counter
from pathlib import Path

from toprovar_batch.worker.reference.geneval_prompts import geneval_file, geneval_rows
from toprovar_batch.worker.reference.scenes import Wanted
from toprovar_batch.worker.reference.scenes.split import heldout_colours, is_heldout_pair
from toprovar_batch.worker.reference.scenes.vocab import TASKS
from toprovar_batch.worker.reference.scoring.verdict import check_wanted

PROMPTS = Path(__file__).parents[3] / "jobs" / "prompts" / "geneval.jsonl"


def test_the_file_is_what_the_scenes_give_now():
    assert PROMPTS.read_text(encoding="utf-8") == geneval_file()


def test_every_row_can_be_judged_and_is_there_once():
    rows = geneval_rows()
    assert len({row["prompt"] for row in rows}) == len(rows)
    assert set(Counter(row["task"] for row in rows)) == set(TASKS)
    assert min(Counter(row["task"] for row in rows).values()) >= 10
    for row in rows:
        wanted = [Wanted(**want) for want in json.loads(row["wanted"])]
        check_wanted(row["task"], wanted, row["relation"])


def test_prompts_name_what_training_has_not_shown():
    for row in geneval_rows():
        wanted = [Wanted(**want) for want in json.loads(row["wanted"])]
        if len(wanted) == 2:
            assert is_heldout_pair(*(want.shape for want in wanted))
        elif row["task"] != "one_object":
            assert any(want.colour in heldout_colours(want.shape) for want in wanted)
