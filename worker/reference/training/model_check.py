"""How often a model draws what held-out prompts ask for, straight from the generator: a quick look between trainings.

`jobs/geneval.yaml` with `toprovar-batch evaluate` is the measurement to report.
"""

from collections.abc import Sequence

from toprovar_batch.worker.generator import Generator, generate_all
from toprovar_batch.worker.reference.scenes import task_prompts
from toprovar_batch.worker.reference.scoring.judging import judge_made
from toprovar_batch.worker.reference.scoring.scorer import Scorer
from toprovar_batch.worker.reference.scoring.verdict import Verdict
from toprovar_batch.worker.request import GenerationRequest


def check_model(
    generator: Generator, scorer: Scorer, tasks: Sequence[str], prompts: int, images: int = 1
) -> dict[str, list[Verdict]]:
    """Generate held-out prompts and judge the pictures.

    Args:
        generator: set up.
        scorer: reads the pictures.
        tasks: of the evaluation.
        prompts: per task, at most.
        images: per prompt, each with a seed of its own.

    Returns:
        Task -> the verdicts of its pictures.
    """
    wanted = [
        prompt for task in tasks for prompt in task_prompts(task, prompts, "heldout") for _ in range(images)
    ]
    requests = [
        GenerationRequest(str(index), prompt.text, None, seed=index) for index, prompt in enumerate(wanted)
    ]
    verdicts: dict[str, list[Verdict]] = {task: [] for task in tasks}
    for batch, made in generate_all(generator, requests, generator.batch_size):
        expected = [wanted[int(request.sample_id)] for request in batch]
        for prompt, verdict in zip(expected, judge_made(scorer, made, expected).verdicts, strict=True):
            verdicts[prompt.task].append(verdict)
    return verdicts
