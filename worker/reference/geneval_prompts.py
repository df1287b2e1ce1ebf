"""The fixed prompts that `jobs/geneval.yaml` generates: six tasks, nothing that training has shown.

Each row says what its picture has to show, so the finished dataset can be scored without this file.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click

from toprovar_batch.worker.whole_file import write_whole

from .scenes import task_prompts
from .scenes.vocab import TASKS

PROMPTS_PER_TASK: Final = 20
"""At most: two objects and colours have fewer combinations that were held out."""
_SEED: Final = 0


def geneval_rows() -> list[dict[str, Any]]:
    """Rows of the prompt file: `prompt`, `task`, `wanted` (JSON text), `relation` (text or None)."""
    return [
        {
            "prompt": prompt.text,
            "task": task,
            "wanted": json.dumps([asdict(want) for want in prompt.wanted]),
            "relation": prompt.relation,
        }
        for task in TASKS
        for prompt in task_prompts(task, PROMPTS_PER_TASK, "heldout", _SEED)
    ]


def geneval_file() -> str:
    """The content of `jobs/prompts/geneval.jsonl`."""
    return "".join(json.dumps(row) + "\n" for row in geneval_rows())


@click.command()
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
def geneval_prompts_command(output: Path) -> None:
    """Write the prompts of jobs/geneval.yaml to OUTPUT."""
    write_whole(output, geneval_file())
    click.echo(f"{output}: {len(geneval_rows())} prompts")


if __name__ == "__main__":
    geneval_prompts_command()
