"""From what `bench` is asked to what it found: checks, ceilings, models, and timings side by side."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from toprovar_batch.kernels.ops import Backend
from toprovar_batch.orchestrator.steps import SILENT, Steps
from toprovar_batch.worker.errors import ModelSpecError, UserError
from toprovar_batch.worker.generator import Generator
from toprovar_batch.worker.pruning.policies.specs import PolicySpec
from toprovar_batch.worker.resolved import resolve
from toprovar_batch.worker.runtime import resolve_device, resolve_dtype, resolve_kernels
from toprovar_batch.worker.specs import EngineSpec, RuntimeSpec

from .accuracy_limits import Check, check_accuracy
from .combinations import Combination
from .floors import Ceilings, measure_ceilings
from .generation_timing import CombinationTiming, time_combinations

_Model = tuple[str, str]  # backend and dtype as named, see `Combination.model`


@dataclass(frozen=True)
class Comparison:
    """What to compare, and how.

    Attributes:
        specs: by dtype as named on the command line; alike but for `model.dtype`.
        policies: by name.
        combinations: of these names.
        device: auto, cpu or cuda.
        warmup: batches of each combination before the timed ones, beside the first.
        repeats: timed batches of each.
        checked: whether each backend and dtype is checked before it is timed.
        profiled: whether a batch more of each is profiled (on a GPU).
    """

    specs: dict[str, EngineSpec]
    policies: dict[str, PolicySpec]
    combinations: Sequence[Combination]
    device: str
    warmup: int
    repeats: int
    checked: bool = True
    profiled: bool = False


@dataclass(frozen=True)
class Compared:
    """What was found.

    Attributes:
        engines: what each backend and dtype that was timed is, in `Generator.describe`'s words; by these two as named.
        checks: of each backend and dtype, as named.
        ceilings: of the GPU by compute dtype; empty on a CPU.
        timings: of each combination, in their order.
    """

    engines: dict[_Model, dict[str, Any]]
    checks: dict[_Model, Check]
    ceilings: dict[str, Ceilings]
    timings: list[CombinationTiming]


def compare(asked: Comparison, steps: Steps = SILENT) -> Compared:
    """Check, load and time what is asked for; what fails its check is not timed.

    Args:
        asked: what to compare.
        steps: is told what goes on.

    Raises:
        UserError: a policy that does not fit, or a memory that does not hold all models.
        ModelSpecError: no such device, kernels that cannot run on it, or a model that cannot be built.
        RunFailedError: a first batch is wrong.
    """
    _refuse_misfits(asked)
    device = resolve_device(asked.device)
    models = _resolve_models(asked, device)
    checks = _check_models(asked, models, device, steps)
    sound = [each for each in asked.combinations if checks[each.model].fault is None]
    dtypes = dict.fromkeys(models[each.model][1] for each in sound)
    if device.type == "cuda":
        steps.begin("measuring what the GPU can do")
    ceilings = {dtype: measure_ceilings(dtype, device) for dtype in dtypes if device.type == "cuda"}
    steps.begin("loading weights")
    generators = _load_generators(asked, models, dict.fromkeys(each.model for each in sound))
    timed = iter(
        time_combinations(
            [generators[each.model].with_policy(asked.policies[each.policy]) for each in sound],
            sound,
            warmup=asked.warmup,
            repeats=asked.repeats,
            ceilings=[ceilings.get(models[each.model][1]) for each in sound],
            profiled=asked.profiled,
            steps=steps,
        )
    )
    steps.end()
    faults = [checks[each.model].fault for each in asked.combinations]
    return Compared(
        {model: generator.describe() | generator.usage() for model, generator in generators.items()},
        checks,
        {_name(dtype): found for dtype, found in ceilings.items()},
        [
            CombinationTiming(each, error=fault) if fault else next(timed)
            for each, fault in zip(asked.combinations, faults, strict=True)
        ],
    )


def _refuse_misfits(asked: Comparison) -> None:
    """Say what does not fit before any weights are made."""
    spec = resolve(next(iter(asked.specs.values())))
    for name, policy in asked.policies.items():
        try:
            Generator(spec.with_policy(policy), RuntimeSpec())
        except ModelSpecError as error:
            raise UserError(f"--policy {name}: {error}") from error


def _resolve_models(asked: Comparison, device: torch.device) -> dict[_Model, tuple[Backend, torch.dtype]]:
    found = {}
    for model in dict.fromkeys(each.model for each in asked.combinations):
        backend, dtype = model
        head_dim = resolve(asked.specs[dtype]).model.transformer.head_dim
        found[model] = (resolve_kernels(backend, device, head_dim), resolve_dtype(dtype, device))
    return found


def _check_models(
    asked: Comparison, models: dict[_Model, tuple[Backend, torch.dtype]], device: torch.device, steps: Steps
) -> dict[_Model, Check]:
    """Check each backend and dtype once, whatever they are called."""
    if not asked.checked:
        return dict.fromkeys(models, Check(None))
    found: dict[tuple[str, torch.dtype], Check] = {}
    for (_, named), (backend, dtype) in models.items():
        if (backend.name, dtype) not in found:
            spec = resolve(asked.specs[named])
            steps.begin(f"checking {_name(dtype)} by {backend.name}")
            found[backend.name, dtype] = check_accuracy(spec, dtype=dtype, backend=backend, device=device)
    return {model: found[backend.name, dtype] for model, (backend, dtype) in models.items()}


def _load_generators(
    asked: Comparison, models: dict[_Model, tuple[Backend, torch.dtype]], wanted: Iterable[_Model]
) -> dict[_Model, Generator]:
    """Load each compute dtype's weights once, for all backends; all stay in memory, since combinations take turns."""
    loaded: dict[torch.dtype, Generator] = {}
    found = {}
    for backend, named in wanted:
        dtype = models[backend, named][1]
        if dtype not in loaded:
            loaded[dtype] = _load(asked, backend, named, beside=list(loaded))
        found[backend, named] = loaded[dtype].with_backend(backend)
    return found


def _load(asked: Comparison, backend: str, named: str, *, beside: list[torch.dtype]) -> Generator:
    runtime = RuntimeSpec.model_validate({"device": asked.device, "backend": backend})
    generator = Generator(resolve(asked.specs[named]), runtime)
    try:
        generator.setup()
    except torch.OutOfMemoryError as error:
        others = f" beside that in {' and '.join(map(_name, beside))}" if beside else ""
        raise UserError(f"--dtype {named}: the GPU's memory does not hold this model{others}") from error
    return generator


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
