"""How often a model draws what held-out prompts ask for, straight from the engine: a quick look between trainings.

`jobs/geneval.yaml` with `toprovar-batch evaluate` is the measurement to report.
"""

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from toprovar_batch.worker.engine import Engine
from toprovar_batch.worker.reference.scenes import TaskPrompt, task_prompts
from toprovar_batch.worker.reference.scoring.scorer import Scorer
from toprovar_batch.worker.reference.scoring.verdict import Verdict, judge
from toprovar_batch.worker.request import GenerationRequest


def check_model(
    engine: Engine, scorer: Scorer, tasks: Sequence[str], prompts: int, images: int = 1
) -> dict[str, list[Verdict]]:
    """Generate held-out prompts and judge the pictures.

    Args:
        engine: set up.
        scorer: reads the pictures.
        tasks: of the evaluation.
        prompts: a task, at most.
        images: a prompt, each with a seed of its own.

    Returns:
        Task -> the verdicts of its pictures; one that could not be generated has failed.
    """
    wanted = [
        prompt for task in tasks for prompt in task_prompts(task, prompts, "heldout") for _ in range(images)
    ]
    requests = [
        GenerationRequest(str(index), prompt.text, None, seed=index) for index, prompt in enumerate(wanted)
    ]
    verdicts: dict[str, list[Verdict]] = {task: [] for task in tasks}
    for batch in engine.plan_batches(requests):
        for request, result in zip(batch, engine.generate(batch), strict=True):
            prompt = wanted[int(request.sample_id)]
            verdicts[prompt.task].append(_verdict(prompt, result.image, scorer))
    return verdicts


def _verdict(prompt: TaskPrompt, content: bytes | None, scorer: Scorer) -> Verdict:
    if content is None:
        return Verdict(False, "error: no picture was made")
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(content)))).permute(2, 0, 1)[None] / 255.0
    (seen,) = scorer.detector.detect(pixels.to(scorer.detector.device))
    return judge(prompt.wanted, prompt.relation, seen)
