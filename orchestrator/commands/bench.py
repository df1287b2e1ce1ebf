"""The `bench` command: how fast a model generates on this machine, and where the time goes."""

import platform
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import click

from toprovar_batch import __version__
from toprovar_batch.orchestrator.benchmark.combinations import combine
from toprovar_batch.orchestrator.benchmark.commit import describe_commit
from toprovar_batch.orchestrator.commands.finite_range import FiniteRange
from toprovar_batch.orchestrator.console import echo, echo_json
from toprovar_batch.orchestrator.steps import ToldSteps
from toprovar_batch.worker.errors import ModelSpecError, RunFailedError, UserError
from toprovar_batch.worker.words import counted

if TYPE_CHECKING:
    from toprovar_batch.orchestrator.benchmark.comparison import Compared, Comparison
    from toprovar_batch.worker.specs import EngineSpec

_DTYPES = ("auto", "bfloat16", "float16", "float32")


class BatchList(click.ParamType[tuple[int, ...]]):
    """A list of batch sizes such as 1,4,8."""

    name = "sizes"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Parse the list; click reports what is wrong."""
        if isinstance(value, tuple):
            return value
        try:
            sizes = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            sizes = ()
        if not sizes or min(sizes) < 1:
            self.fail(f"{value!r} is no list of positive batch sizes such as 1,4,8", param, ctx)
        return sizes


@dataclass(frozen=True)
class _Options:
    """The command line; the options below explain each field."""

    preset: str
    random_weights: bool
    batches: tuple[int, ...]
    resolution: str | None
    h_div_w: float
    policies: tuple[str, ...]
    device: Literal["auto", "cpu", "cuda"]
    backends: tuple[str, ...]
    dtypes: tuple[str, ...]
    repeats: int
    warmup: int
    check: bool
    profiled: bool
    price_per_hour: float | None
    accuracy: bool
    as_json: bool


@click.command("bench")
@click.option("--model", "preset", default="tiny", show_default=True, help="Preset to measure.")
@click.option("--random-weights", is_flag=True, help="Full size, seeded random weights, no files.")
@click.option("--batch", "batches", type=BatchList(), default="1,4,8", show_default=True)
@click.option("--resolution", help="0.06M, 0.25M, 0.60M or 1M; the preset's where left out.")
@click.option("--h-div-w", type=float, default=1.0, show_default=True, help="Height over width.")
@click.option(
    "--policy", "policies", multiple=True, default=["dense"], show_default=True,
    help="Name, paper-2b, or a policy file (YAML); may be repeated, as may --backend and --dtype: all combinations "
    "take turns in one process.",
)  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--backend", "backends", type=click.Choice(["auto", "torch", "triton"]), multiple=True, default=["auto"],
    show_default=True, help="Kernels; may be repeated.",
)  # fmt: skip
@click.option(
    "--dtype", "dtypes", type=click.Choice(_DTYPES), multiple=True, default=["auto"], show_default=True,
    help="Compute dtype; may be repeated.",
)  # fmt: skip
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option("--warmup", type=click.IntRange(0), default=2, show_default=True)
@click.option(
    "--check/--no-check", default=True, show_default=True,
    help="Compare each backend and dtype with float32 in plain PyTorch first, and time none that is off.",
)  # fmt: skip
@click.option(
    "--profile", "profiled", is_flag=True,
    help="Also run a batch of each under PyTorch's profiler: busy share and launches of the GPU's phases.",
)  # fmt: skip
@click.option(
    "--price-per-hour", type=FiniteRange(0, min_open=True), metavar="DOLLARS",
    help="Of the GPU, for images per dollar.",
)  # fmt: skip
@click.option(
    "--accuracy", is_flag=True,
    help="Compare bfloat16 and float32 with float32 in plain PyTorch, per scale and on random weights; time nothing.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def bench_command(**values: Any) -> None:
    """Time generation under all combinations of policy, batch, backend and dtype, side by side, and its phases."""
    options = _Options(**values)
    if options.accuracy:
        _report_accuracy(options)
        return
    from toprovar_batch.orchestrator.benchmark.comparison import compare  # noqa: PLC0415 - imports torch
    from toprovar_batch.orchestrator.benchmark.report import describe_timings  # noqa: PLC0415 - imports torch

    asked = _comparison(options)
    found = compare(asked, ToldSteps())
    if options.as_json:
        echo_json(_record(asked, found, options.price_per_hour))
    else:
        for line in describe_timings(found, describe_commit(), options.price_per_hour):
            echo(line)
    _fail_where_nothing_may_be_said(found)


def _engine_specs(options: _Options) -> "dict[str, EngineSpec]":
    """What each dtype of the command line runs."""
    from pydantic import ValidationError  # noqa: PLC0415 - only here

    from toprovar_batch.orchestrator.job.errors import explain  # noqa: PLC0415 - only here
    from toprovar_batch.worker.presets import get_preset  # noqa: PLC0415 - only here
    from toprovar_batch.worker.specs import EngineSpec, ImageSpec, ModelSpec  # noqa: PLC0415 - only here

    try:
        get_preset(options.preset)
    except ModelSpecError as error:
        raise UserError(f"--model: {str(error).removeprefix('model.preset: ')}") from error
    model = {"preset": options.preset, "random_weights": options.random_weights}
    try:
        image = ImageSpec.model_validate({"resolution": options.resolution, "h_div_w": options.h_div_w})
    except ValidationError as error:
        key, sentence = explain(error, ImageSpec)
        option = "--" + key.replace("_", "-")
        raise UserError(option + sentence.removeprefix(key)) from error
    return {
        dtype: EngineSpec(model=ModelSpec.model_validate(model | {"dtype": dtype}), image=image)
        for dtype in options.dtypes
    }


def _comparison(options: _Options) -> "Comparison":
    """What the command line asks for, checked as far as it can be without the model."""
    from toprovar_batch.orchestrator.benchmark.comparison import Comparison  # noqa: PLC0415 - imports torch
    from toprovar_batch.orchestrator.job.policy_file import read_policy  # noqa: PLC0415 - only here

    return Comparison(
        _engine_specs(options),
        {policy: read_policy(policy) for policy in options.policies},
        combine(options.policies, options.batches, options.backends, options.dtypes),
        options.device,
        options.warmup,
        options.repeats,
        checked=options.check,
        profiled=options.profiled,
    )


def _record(asked: "Comparison", found: "Compared", price_per_hour: float | None) -> dict[str, Any]:
    """What `--json` prints."""
    from toprovar_batch.orchestrator.benchmark.report import timing_record  # noqa: PLC0415 - imports torch

    return {
        "command": "toprovar-batch " + " ".join(sys.argv[1:]),
        "version": __version__,
        "commit": describe_commit(),
        "python": platform.python_version(),
        "policies": {policy: each.model_dump(mode="json") for policy, each in asked.policies.items()},
        "engines": [
            {"asked": {"backend": backend, "dtype": dtype}} | engine
            for (backend, dtype), engine in found.engines.items()
        ],
        "checks": [
            {"backend": backend, "dtype": dtype} | asdict(check)
            for (backend, dtype), check in found.checks.items()
        ],
        "ceilings": {dtype: asdict(each) for dtype, each in found.ceilings.items()},
        "batches": [timing_record(timing, found.timings[0], price_per_hour) for timing in found.timings],
    }


def _fail_where_nothing_may_be_said(found: "Compared") -> None:
    """Exit code 1 where a check failed, or no combination could be timed."""
    faults = [check.fault for check in found.checks.values() if check.fault]
    if faults:
        pairs = counted(len(found.checks), "pair")
        raise RunFailedError(f"{len(faults)} of {pairs} of backend and dtype: {faults[0]}")
    errors = [timing.error for timing in found.timings if timing.error]
    if len(errors) == len(found.timings):
        raise RunFailedError(f"no combination could be measured: {errors[0]}")


def _report_accuracy(options: _Options) -> None:
    """Print how exact each compute dtype is on a device and backend."""
    import torch  # noqa: PLC0415 - keeps --help fast

    from toprovar_batch.orchestrator.benchmark.accuracy import measure_accuracy  # noqa: PLC0415
    from toprovar_batch.worker.resolved import resolve  # noqa: PLC0415
    from toprovar_batch.worker.runtime import resolve_device, resolve_kernels  # noqa: PLC0415

    if len(options.backends) > 1:
        raise UserError("--accuracy: it looks at one backend at a time; give one --backend")
    spec = resolve(next(iter(_engine_specs(options).values())))
    device = resolve_device(options.device)
    backend = resolve_kernels(options.backends[0], device, spec.model.transformer.head_dim)
    dtypes = ("bfloat16", "float32") if options.dtypes == ("auto",) else options.dtypes
    steps, found = ToldSteps(), {}
    for dtype in dtypes:
        steps.begin(f"comparing {dtype} with float32")
        found[dtype] = measure_accuracy(spec, dtype=getattr(torch, dtype), backend=backend, device=device)
    steps.end()
    if options.as_json:
        scales = {dtype: [asdict(scale) for scale in each] for dtype, each in found.items()}
        echo_json({"backend": backend.name, "commit": describe_commit(), "dtypes": scales})
        return
    echo(
        f"{backend.name} kernels against float32 in PyTorch: rms error over the largest logit, and flipped bits"
    )
    for dtype, each in found.items():
        for scale in each:
            echo(f"{dtype:8}  {scale.tokens:5d} tokens  {scale.rms_error:.1e}  {scale.flipped_bits:.3%}")
        echo(f"{dtype:8}  worst scale  {max(scale.rms_error for scale in each):.1e}")
