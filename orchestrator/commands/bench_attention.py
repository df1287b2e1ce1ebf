"""The `bench-attention` command: checks the attention kernels on this GPU, then times them beside PyTorch's."""

import platform
import sys
from typing import TYPE_CHECKING, Any

import click

from toprovar_batch import __version__
from toprovar_batch.orchestrator.benchmark.commit import describe_commit
from toprovar_batch.orchestrator.console import echo, echo_json
from toprovar_batch.worker.errors import RunFailedError, UserError

if TYPE_CHECKING:
    import torch

    from toprovar_batch.kernels.flash_attention.config import KernelConfig
    from toprovar_batch.orchestrator.benchmark.attention_timing import AttentionCase, CaseTiming

_CHECKED = {"bfloat16": (32, 64, 96, 112, 128, 256), "float16": (64, 112, 128)}  # head sizes
_MODELS = {"2b": "infinity-2b", "8b": "infinity-8b", "tiny": "tiny"}
_RATIOS = (
    ("entropy", "plain"),
    ("entropy", "flash"),
    ("entropy", "cudnn"),
    ("plain", "cudnn"),
    ("entropy", "pytorch"),
    ("watched", "unwatched"),
)


@click.command("bench-attention")
@click.option(
    "--model", "models", type=click.Choice(list(_MODELS)), multiple=True, default=list(_MODELS), show_default=True,
    help="Whose shapes; may be repeated.",
)  # fmt: skip
@click.option(
    "--tune", is_flag=True, help="Time every configuration of the kernels instead, and name the best."
)
@click.option(
    "--kernel", type=click.Choice(["auto", "triton"]), default="auto", show_default=True,
    help="triton: the portable kernel even where there is one for this GPU.",
)  # fmt: skip
@click.option("--repeats", type=click.IntRange(1), default=9, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def bench_attention_command(
    models: tuple[str, ...], tune: bool, kernel: str, repeats: int, as_json: bool
) -> None:
    """Time attention with entropy against its form without, FlashAttention-2 and cuDNN; check it first."""
    import torch  # noqa: PLC0415 - keeps --help fast

    if not torch.cuda.is_available():
        raise UserError("bench-attention: the kernels run on GPUs, and PyTorch sees none here")
    device = torch.device("cuda", torch.cuda.current_device())
    record = _describe(device)
    with torch.inference_mode():
        if tune:
            record["tuning"] = _tune(device, models, kernel, repeats, quiet=as_json)
        else:
            record["checked"] = _check(device, kernel)
            timings = _time(device, models, kernel, repeats)
            record["cases"] = [_summary(timing) for timing in timings]
    if as_json:
        echo_json(record)
    elif not tune:
        _print_table(record, timings)


def _describe(device: "torch.device") -> dict[str, Any]:
    import torch  # noqa: PLC0415 - keeps --help fast
    import triton  # noqa: PLC0415 - keeps --help fast

    return {
        "command": "toprovar-batch " + " ".join(sys.argv[1:]),
        "version": __version__,
        "commit": describe_commit(),
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cudnn": torch.backends.cudnn.version(),
    }


def _config(device: "torch.device", head_dim: int, dtype: "torch.dtype", kernel: str) -> "KernelConfig":
    import torch  # noqa: PLC0415 - keeps --help fast

    from toprovar_batch.kernels.flash_attention import config  # noqa: PLC0415 - imports torch

    choose = config.portable_config if kernel == "triton" else config.choose_config
    return choose(torch.cuda.get_device_capability(device), head_dim, dtype)


def _check(device: "torch.device", kernel: str) -> list[str]:
    """Check the head sizes of every model.

    Raises:
        RunFailedError: one fails; nothing is timed.
    """
    import torch  # noqa: PLC0415 - keeps --help fast

    from toprovar_batch.orchestrator.benchmark.attention_check import find_fault  # noqa: PLC0415 - imports Triton

    checked = []
    for dtype_name, head_dims in _CHECKED.items():
        dtype = getattr(torch, dtype_name)
        for head_dim in head_dims:
            config = _config(device, head_dim, dtype, kernel)
            name = f"head size {head_dim}, {dtype_name}: {config}"
            echo(f"checking {name}", err=True)
            fault = find_fault(head_dim, dtype, device, config)
            if fault:
                raise RunFailedError(f"{name}: {fault}; nothing was timed")
            checked.append(name)
    return checked


def _cases(models: tuple[str, ...]) -> "list[AttentionCase]":
    from toprovar_batch.orchestrator.benchmark.attention_timing import dense_cases, ragged_cases  # noqa: PLC0415 - imports torch

    cases = []
    for model in models:
        if model == "tiny":
            cases += dense_cases(_MODELS[model], 8, (6, 9))
        else:
            cases += dense_cases(_MODELS[model], 2, (9, 10, 11, 12))
            cases += dense_cases(_MODELS[model], 8, (6, 9, 10, 11, 12))
    return cases + (ragged_cases() if "2b" in models else [])


def _time(device: "torch.device", models: tuple[str, ...], kernel: str, repeats: int) -> "list[CaseTiming]":
    import torch  # noqa: PLC0415 - keeps --help fast

    from toprovar_batch.orchestrator.benchmark.attention_timing import FaultyKernelError, time_case  # noqa: PLC0415 - imports torch

    timings = []
    for case in _cases(models):
        echo(f"timing {case.name}", err=True)
        config = _config(device, case.head_dim, torch.bfloat16, kernel)
        try:
            timings.append(time_case(case, device, repeats, config))
        except FaultyKernelError as error:
            raise RunFailedError(f"{error}; no speed is given") from error
    return timings


def _summary(timing: "CaseTiming") -> dict[str, Any]:
    case = timing.case
    return {
        "name": case.name,
        "heads": case.heads,
        "head_dim": case.head_dim,
        "queries": case.queries,
        "keys": case.keys,
        "ratios": {f"{ours}/{theirs}": timing.ratio(ours, theirs) for ours, theirs in _RATIOS},
        "teraflops": {name: timing.teraflops(name) for name in timing.milliseconds},
        "milliseconds": timing.milliseconds,
        "launch_us": timing.launch_us,
        "errors": timing.errors,
    }


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _print_table(record: dict[str, Any], timings: "list[CaseTiming]") -> None:
    echo(
        f"{record['device']}, torch {record['torch']}, triton {record['triton']}, cuDNN {record['cudnn']}, "
        f"commit {record['commit']}; bfloat16"
    )
    echo(
        "E: the kernel with entropy, K: without, F: FlashAttention-2, C: cuDNN, P: PyTorch's loop or mask; W, U: as the "
        "model calls it, with the entropy of half of the rows and without"
    )
    echo(
        f"{'queries x keys':30s}   E/K   E/F   E/C   K/C   E/P   W/U      E ms  +-%    K ms    F ms    C ms    P ms "
        "TFLOP/s: E   K   F   C  host us"
    )
    for timing in timings:
        ratios = " ".join(f"{_number(timing.ratio(*pair), 3):>5}" for pair in _RATIOS)
        names = ("plain", "flash", "cudnn", "pytorch")
        medians = " ".join(f"{_number(timing.median(name), 3):>7}" for name in names)
        speeds = " ".join(
            f"{_number(timing.teraflops(name), 0):>3}" for name in ("entropy", "plain", "flash", "cudnn")
        )
        echo(
            f"{timing.case.name:30s} {ratios}  {_number(timing.median('entropy'), 3):>8} "
            f"{100 * (timing.spread('entropy') or 0):4.1f} {medians}         {speeds}  {timing.launch_us:7.0f}"
        )
        for name, error in timing.errors.items():
            echo(f"  {name} was not timed: {error}")


def _tune(
    device: "torch.device", models: tuple[str, ...], kernel: str, repeats: int, quiet: bool
) -> list[dict[str, Any]]:
    """Time each configuration on two scales for each head size; one that fails is reported and left out."""
    import torch  # noqa: PLC0415 - keeps --help fast

    from toprovar_batch.kernels.flash_attention.config import variants  # noqa: PLC0415 - imports torch
    from toprovar_batch.orchestrator.benchmark.attention_timing import dense_cases  # noqa: PLC0415 - imports torch

    chosen = {128: "infinity-2b"} if {"2b", "8b"} & set(models) else {}
    chosen |= {64: "tiny"} if "tiny" in models else {}
    results = []
    for head_dim, preset in chosen.items():
        cases = dense_cases(preset, 8, (9, 12) if head_dim == 128 else (9,))
        for config in variants(torch.cuda.get_device_capability(device), head_dim):
            if kernel == "triton" and config.kernel != kernel:
                continue
            echo(f"trying {config}", err=True)
            result = _try(config, cases, device, repeats)
            results.append(result)
            if not quiet:
                echo(f"head size {head_dim}  {config!s:50s} {result['error'] or result['teraflops']}")
        for index, case in enumerate(cases):
            able = [result for result in results if not result["error"] and result["head_dim"] == head_dim]
            best = max(able, key=lambda result: result["teraflops"][index], default=None)
            if best and not quiet:
                echo(f"best at {case.name}: {best['config']}, {best['teraflops'][index]:.0f} TFLOP/s")
    return results


def _try(
    config: "KernelConfig", cases: "list[AttentionCase]", device: "torch.device", repeats: int
) -> dict[str, Any]:
    import torch  # noqa: PLC0415 - keeps --help fast

    from toprovar_batch.orchestrator.benchmark.attention_check import find_fault  # noqa: PLC0415 - imports Triton
    from toprovar_batch.orchestrator.benchmark.attention_timing import time_case  # noqa: PLC0415 - imports torch

    result: dict[str, Any] = {"config": str(config), "head_dim": cases[0].head_dim, "error": None}
    try:
        fault = find_fault(cases[0].head_dim, torch.bfloat16, device, config)
        if fault:
            return result | {"error": fault}
        timings = [time_case(case, device, repeats, config) for case in cases]
    except Exception as error:  # noqa: BLE001 - whatever a compiler makes of a variant, the others go on
        return result | {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    return result | {
        "teraflops": [round(timing.teraflops("entropy") or 0) for timing in timings],
        "entropy/plain": [timing.ratio("entropy", "plain") for timing in timings],
        "entropy/cudnn": [timing.ratio("entropy", "cudnn") for timing in timings],
    }
