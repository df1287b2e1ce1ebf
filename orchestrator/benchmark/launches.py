"""How busy a GPU is in each phase of a batch, and what the host launches for it: one batch under PyTorch's profiler.

The profiler records the GPU alone, so the host keeps its pace as far as it can. Two kernels that nothing else launches
mark where the transformer starts and ends. Whatever was launched between their launches belongs to it, on any stream.
"""

import json
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

PHASES = ("text", "transformer", "decode")
_MARK = "spin_kernel"  # of torch.cuda._sleep
_HOST = {"cuda_runtime", "cuda_driver"}  # categories of the calls that launch


@dataclass(frozen=True)
class PhaseLaunches:
    """What ran on the GPU in one phase.

    Attributes:
        kernels: that ran, also those of CUDA graphs; copies and fills are none.
        host_launches: calls of the host that started them: of a kernel, or of a graph of many.
        busy_ms: in which at least one kernel ran.
    """

    kernels: int
    host_launches: int
    busy_ms: float


def profile_launches(
    generate: Callable[[Callable[[int], None]], object], num_scales: int
) -> dict[str, PhaseLaunches]:
    """Profile one batch on the GPU.

    Args:
        generate: makes the batch, all images together; calls what it is given as `Generator.generate` calls `on_scale`.
        num_scales: S of the schedule.

    Returns:
        By phase; empty where the profiler saw no marks, as without the right to profile.
    """

    def mark(scale_index: int) -> None:
        if scale_index in {-1, num_scales - 1}:
            torch.cuda._sleep(1)  # noqa: SLF001 - the one kernel of PyTorch with a name of its own

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        generate(mark)
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "trace.json")
        profiled.export_chrome_trace(str(file))
        trace = json.loads(file.read_text(encoding="utf-8"))
    return launches_of(trace["traceEvents"])


def launches_of(events: Iterable[dict[str, Any]]) -> dict[str, PhaseLaunches]:
    """Sort the kernels of a trace into phases, by the time of their launch.

    Args:
        events: of a Chrome trace of the profiler: `cat`, `name`, `ts` and `dur` in microseconds, `args.correlation`.

    Returns:
        By phase; empty where there are not two marks.
    """
    kernels: list[dict[str, Any]] = []
    launched: dict[int, float] = {}  # when, by correlation
    for event in events:
        if event.get("cat") == "kernel":
            kernels.append(event)
        elif event.get("cat") in _HOST and "correlation" in event.get("args", {}):
            launched[event["args"]["correlation"]] = event["ts"]

    def launch_of(kernel: dict[str, Any]) -> float:
        return launched.get(kernel["args"]["correlation"], kernel["ts"])

    marks = sorted(launch_of(kernel) for kernel in kernels if _MARK in kernel["name"])
    if len(marks) != len(PHASES) - 1:
        return {}
    phases: dict[str, list[dict[str, Any]]] = {phase: [] for phase in PHASES}
    for kernel in kernels:
        if _MARK not in kernel["name"]:
            phases[PHASES[bisect_right(marks, launch_of(kernel))]].append(kernel)
    return {phase: _summed(of_phase) for phase, of_phase in phases.items()}


def _summed(kernels: list[dict[str, Any]]) -> PhaseLaunches:
    spans = ((kernel["ts"], kernel["ts"] + kernel["dur"]) for kernel in kernels)
    calls = {kernel["args"]["correlation"] for kernel in kernels}
    return PhaseLaunches(len(kernels), len(calls), covered(spans) / 1e3)


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of spans (start, end): kernels of several streams count once."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
