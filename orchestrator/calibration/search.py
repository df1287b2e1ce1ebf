"""The calibration of a job's policy: a sample of its prompts on this machine's model, and the search for a goal."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Final

import pyarrow as pa
import torch

from toprovar_batch.orchestrator.console import echo
from toprovar_batch.orchestrator.evaluation.data import read_wanted
from toprovar_batch.orchestrator.job.spec import JobSpec
from toprovar_batch.orchestrator.prompts.cells import python_rows
from toprovar_batch.orchestrator.steps import SILENT, Steps
from toprovar_batch.worker.batching import plan_batches
from toprovar_batch.worker.errors import JobSpecError
from toprovar_batch.worker.generator import Generator
from toprovar_batch.worker.pruning.calibration import (
    Recording,
    RecordingPolicy,
    check_recordable,
    least_fraction,
    mean_pattern,
    recommend,
    simulate,
)
from toprovar_batch.worker.pruning.policies.base import BatchContext
from toprovar_batch.worker.pruning.policies.fit import first_unguided_scale
from toprovar_batch.worker.pruning.policies.specs import (
    DenseSpec,
    DetailSpec,
    PolicySpec,
    ReplaySpec,
    ToprovarSpec,
)
from toprovar_batch.worker.reference.scoring.judging import Expectation
from toprovar_batch.worker.reference.scoring.scorer import load_scorer
from toprovar_batch.worker.request import GenerationRequest
from toprovar_batch.worker.words import counted, with_error

from .goal import (
    MOST_TRIES,
    Candidate,
    Made,
    make_sample,
    score_loss,
    ssim_loss,
    strongest,
)

_CHART_WIDTH: Final = 40
_DETAIL_THRESHOLDS: Final = (0.01, 2.0)


@dataclass(frozen=True)
class Goal:
    """What is requested.

    Attributes:
        name: "fraction" (token-layers over those of dense), "score_loss" (points) or "ssim_loss" (1 - SSIM to dense).
        limit: the most that is allowed.
    """

    name: str
    limit: float


@dataclass(frozen=True)
class Found:
    """A calibrated policy.

    Attributes:
        policy: its settings.
        fraction: mean `token_layer_fraction` of the sample.
        measured: what else the provenance must tell.
    """

    policy: PolicySpec
    fraction: float
    measured: dict[str, Any]


class Calibration:
    """A sample of a job on this machine's model, for one calibration."""

    def __init__(self, job: JobSpec, sample: pa.Table, global_layers: float, steps: Steps = SILENT) -> None:
        """Load the model.

        Args:
            job: whose policy is calibrated.
            sample: rows of its plan.
            global_layers: share of the layers that must run whole, of toprovar.
            steps: is told what goes on.
        """
        self._steps = steps
        self._base = job.policy if isinstance(job.policy, ToprovarSpec | DetailSpec) else ToprovarSpec()
        self._rows: list[dict[str, Any]] = python_rows(sample)
        columns = ("sample_id", "prompt", "negative_prompt", "seed", "h_div_w")
        self._requests = [GenerationRequest(**{name: row[name] for name in columns}) for row in self._rows]
        self._global_layers = global_layers
        self._generator = Generator(job.resolved, job.runtime)
        self._recordings: list[Recording] = []

    @property
    def _batch_size(self) -> int:
        """Images per batch of everything that is compared, since rounding on a GPU depends on it."""
        return self._generator.with_policy(self._base).batch_size

    def find(self, goal: Goal) -> Found:
        """The policy that prunes as much as the goal allows.

        Raises:
            JobSpecError: the goal cannot be reached, the prompts do not say what to expect, or a batch does not fit
                the GPU.
            ModelSpecError: the policy cannot be calibrated.
        """
        if isinstance(self._base, ToprovarSpec):
            check_recordable(self._base)
        expected = self._expectations() if goal.name == "score_loss" else []
        self._steps.begin("loading the model")
        self._generator.setup()
        try:
            return self._find(goal, expected)
        except torch.OutOfMemoryError as error:
            raise JobSpecError(
                f"the GPU's memory does not hold a batch of {self._batch_size}; name fewer with --set runtime.batch_size=N"
            ) from error

    def _find(self, goal: Goal, expected: list[Expectation]) -> Found:
        if isinstance(self._base, ToprovarSpec):
            self._recordings = self._record()
            if goal.name == "fraction":
                best = recommend(self._base, self._recordings, goal.limit, self._global_layers)
                return Found(best.spec, best.fraction, {})
        return self._search(goal, expected)

    def _expectations(self) -> list[Expectation]:

        missing = [name for name in ("task", "wanted", "relation") if name not in self._rows[0]]
        if missing:
            raise JobSpecError(
                f"--score-loss: the prompts have no column {' and no '.join(missing)}, so nothing tells what their pictures "
                "have to show; use --ssim-loss, or prompts like jobs/geneval.yaml's"
            )
        found = []
        for row in self._rows:
            try:
                found.append(Expectation(row["task"], read_wanted(row), row["relation"]))
            except ValueError as error:
                raise JobSpecError(f"--score-loss: sample {row['sample_id']}: {error}") from error
        return found

    def _record(self) -> list[Recording]:
        """Run the sample dense and record the entropy of its attention."""
        policies: list[RecordingPolicy] = []

        def make_policy(context: BatchContext) -> RecordingPolicy:
            unguided = first_unguided_scale(self._base, len(context.schedule))
            context = replace(context, conditional_from=unguided)
            policies.append(RecordingPolicy(context, guided=self._generator.spec.settings.guided))
            return policies[-1]

        batches = plan_batches(self._requests, self._batch_size)
        self._steps.begin("running dense", len(batches))
        for batch in batches:
            self._generator.observe(batch, make_policy)
            self._steps.advance()
        self._steps.end()
        return [policy.recording for policy in policies]

    def _search(self, goal: Goal, expected: list[Expectation]) -> Found:

        if goal.name == "score_loss":
            loss = score_loss(self._requests, expected, load_scorer(self._generator.device))
        else:
            loss = ssim_loss
        of_fraction = goal.name == "fraction"
        dense = None if of_fraction else self._generate(DenseSpec(), "making dense pictures")
        tries = count(1)

        def measure(policy: PolicySpec) -> Candidate:
            made = self._generate(policy, f"try {next(tries)} of at most {MOST_TRIES}")
            lost, error = (made.fraction, None) if dense is None else loss(made, dense)
            echo(
                f"tried {made.fraction:.1%} of the token-layers"
                + ("" if dense is None else f": {_told(goal, lost, error)}")
            )
            return Candidate(policy, made.fraction, lost, error)

        candidate = self._candidates()
        # The least pruning that reaches a fraction is the greatest mildness that stays below it.
        best, tried = strongest(
            (lambda mildness: candidate(1 - mildness)) if of_fraction else candidate, measure, goal.limit
        )
        if best is None:
            least = min(tried, key=lambda each: each.loss)
            raise JobSpecError(
                f"--{goal.name.replace('_', '-')}: nothing that was tried reaches {goal.limit:g}; the nearest, "
                f"{least.fraction:.1%} of the token-layers, gives {with_error(least.loss, least.standard_error)}; "
                "request more, or calibrate another policy"
            )
        measured = {} if of_fraction else {"loss": best.loss, "standard_error": best.standard_error}
        attempts = [{"fraction": round(each.fraction, 6), "loss": each.loss} for each in tried]
        return Found(best.policy, best.fraction, {**measured, "tried": attempts})

    def _generate(self, policy: PolicySpec, what: str) -> Made:
        self._steps.begin(what, len(plan_batches(self._requests, self._batch_size)))
        generator = self._generator.with_policy(policy)
        made = make_sample(generator, self._requests, self._batch_size, self._steps)
        self._steps.end()
        return made

    def _candidates(self) -> Callable[[float], PolicySpec]:
        """From a strength between 0 and 1 to a policy that prunes more the greater it is."""
        base = self._base
        if isinstance(base, DetailSpec):
            low, high = _DETAIL_THRESHOLDS
            return lambda strength: base.model_copy(
                update={"detail_threshold": round(low * (high / low) ** strength, 4)}
            )

        recordings, share = self._recordings, self._global_layers
        least = least_fraction(base, recordings, share)
        return lambda strength: recommend(base, recordings, fraction_of(strength, least), share).spec

    def report(self, found: Found) -> Iterator[str]:
        """Draw rho of each scale where it was measured, and say what the found settings do."""
        policy = found.policy
        if isinstance(policy, ToprovarSpec):
            yield from draw_ratios(self._recordings, policy)
            yield (
                f"depth_threshold {policy.depth_threshold:g}, beta {policy.beta:g}, a_min {policy.a_min:g}, "
                f"a_max {policy.a_max:g}: {found.fraction:.1%} of the dense token-layers"
            )
        elif isinstance(policy, DetailSpec):
            yield f"detail_threshold {policy.detail_threshold:g}: {found.fraction:.1%} of the dense token-layers"
        if found.fraction == 1:
            yield "that is nothing pruned; request more, or calibrate another policy"
        loss, error = found.measured.get("loss"), found.measured.get("standard_error")
        if loss is not None:
            yield f"loss {with_error(loss, error)}, from {counted(len(self._requests), 'picture')}"
        if loss is not None and error is not None and error > abs(loss):
            yield "its error is larger than the loss; more --prompts tell it better"

    def circumstances(self) -> dict[str, Any]:
        """What else the found settings depend on, for their provenance."""
        described = self._generator.describe()
        names = ("device", "dtype", "backend")
        layers = {"global_layers": self._global_layers} if isinstance(self._base, ToprovarSpec) else {}
        return layers | {name: described[name] for name in names} | {"batch_size": self._batch_size}

    def replay(self, found: Found) -> ReplaySpec | None:
        """The mean pattern of work of a toprovar policy; None where it prunes nothing."""
        assert isinstance(found.policy, ToprovarSpec)
        plan = mean_pattern([work for each in self._recordings for work in simulate(found.policy, each)])
        if not plan:
            return None
        spec = found.policy
        return ReplaySpec(
            plan=tuple(map(tuple, plan)), restoration=spec.restoration, conditional_from=spec.conditional_from
        )


def fraction_of(strength: float, least: float) -> float:
    """From 1 at strength 0 to the least fraction that can be had at strength 1, and never less by rounding."""
    return max(least, 1 - strength * (1 - least))


def _told(goal: Goal, loss: float, error: float | None) -> str:
    what = "points lost" if goal.name == "score_loss" else "of SSIM lost"
    return f"{with_error(loss, error)} {what}"


def draw_ratios(recordings: Sequence[Recording], spec: ToprovarSpec) -> Iterator[str]:
    """Draw rho of each scale, and say where pruning would start."""
    yield "low-entropy ratio of each scale: lowest, mean and highest of the prompts"
    num_scales = len(recordings[0].schedule)
    for scale in range(num_scales):
        values = [value for each in recordings for value in each.low_entropy_ratios()[scale].tolist()]
        values = [value for value in values if not math.isnan(value)] or [0.0]
        low, mean, high = min(values), sum(values) / len(values), max(values)
        yield f"{scale:4d}  {low:.2f} {mean:.2f} {high:.2f}  |{_bar(low, mean, high)}|"
    works = [work for each in recordings for work in simulate(spec, each)]
    starts = Counter(work.pruning_start_scale for work in works)
    told = [
        f"{'none' if start == num_scales else f'scale {start}'} in {count}"
        for start, count in sorted(starts.items())
    ]
    yield f"pruning would start at {', '.join(told)} of {counted(len(works), 'prompt')}"


def _bar(low: float, mean: float, high: float) -> str:
    cells = [" "] * (_CHART_WIDTH + 1)
    first, middle, last = (round(value * _CHART_WIDTH) for value in (low, mean, high))
    cells[first : last + 1] = "-" * (last + 1 - first)
    cells[middle] = "#"
    return "".join(cells)
