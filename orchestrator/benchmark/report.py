"""What `bench` says of its timings: lines for a person, records for a program."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from toprovar_batch.worker.words import counted

from .comparison import Compared
from .cost import cost_of, describe_cost
from .generation_timing import CombinationTiming

_SPEED = (
    "#", "batch", "policy", "dtype", "backend", "token-layers", "s/batch", "min..max", "images/s",
    "x first", "min..max", "x same batch", "peak GB", "rms error",
)  # fmt: skip
_PHASES = ("#", "phase", "ms", "min..max", "floor ms", "of floor", "busy", "kernels", "host launches")


def describe_timings(found: Compared, commit: str | None, price_per_hour: float | None) -> Iterator[str]:
    """Tables of speed and of phases, and a line of cost and of scales for each combination.

    Args:
        found: to be told.
        commit: of the code.
        price_per_hour: dollars for an hour of the device, or None.
    """
    for engine in list(found.engines.values())[:1]:
        yield (
            f"{engine['preset']} ({engine['parameters'] / 1e9:.2f} billion parameters) at {engine['resolution']} "
            f"on {engine['device']}, torch {engine['torch']}, commit {commit}"
        )
    for dtype, ceilings in found.ceilings.items():
        yield (
            f"measured ceilings: {ceilings.matmul_flops / 1e12:.0f} TFLOP/s in {dtype} "
            f"({ceilings.steady_flops / 1e12:.0f} for seconds on end), "
            f"{ceilings.copy_bytes / 1e9:.0f} GB/s"
        )
    timed = [(number, each) for number, each in enumerate(found.timings, 1) if not each.error]
    if timed:
        yield from _aligned([_SPEED, *(_speed_row(number, each, found) for number, each in timed)])
        yield from _aligned([_PHASES, *(row for number, each in timed for row in _phase_rows(number, each))])
    for number, timing in timed:
        device_type = found.engines[timing.combination.model]["device_type"]
        cost = describe_cost(cost_of(timing.images_per_second, price_per_hour), device_type)
        scales = " ".join(f"{value:.1f}" for value in timing.scale_ms)
        yield f"{number}  {cost}; ms of each scale: {scales}"
        if timing.memory_retries:
            yield f"{number}  memory was short {counted(timing.memory_retries, 'time')} while this was timed; time it alone"
        if timing.launches == {}:
            yield f"{number}  the profiler saw no kernels here, so busy shares and launches are missing"
    for number, timing in enumerate(found.timings, 1):
        if timing.error:
            each = timing.combination
            yield (
                f"{number}  batch {each.batch}, {each.policy}, dtype {each.dtype}, backend {each.backend}: {timing.error}"
            )


def timing_record(
    timing: CombinationTiming, first: CombinationTiming, price_per_hour: float | None
) -> dict[str, Any]:
    """A combination as JSON-able values, with every repeat.

    Args:
        timing: of the combination.
        first: of the first one, for the ratios.
        price_per_hour: dollars for an hour of the device, or None.
    """
    values = asdict(timing)
    record: dict[str, Any] = {**values.pop("combination"), **values}
    if timing.seconds:
        record["images_per_second"] = timing.images_per_second
        record["speed_over_first"] = timing.speed_over(first)
        record["busy_share"] = {phase: timing.busy_share(phase) for phase in timing.phase_ms}
        record["cost"] = asdict(cost_of(timing.images_per_second, price_per_hour))
    return record


def _speed_row(number: int, timing: CombinationTiming, found: Compared) -> list[str]:
    combination = timing.combination
    engine = found.engines[combination.model]
    alike = next(
        each for each in found.timings if each.combination.batch == combination.batch and each.seconds
    )
    ratios = timing.speed_over(found.timings[0])
    return [
        str(number),
        str(combination.batch),
        combination.policy,
        engine["dtype"],
        engine["backend"],
        f"{timing.token_layer_fraction:.1%}",
        f"{statistics.median(timing.seconds):.3f}",
        _spread(timing.seconds, 3),
        f"{timing.images_per_second:.3f}",
        _median(ratios, 2),
        _spread(ratios, 2),
        _median(timing.speed_over(alike), 2),
        _number(timing.peak_memory_gb, 1),
        "-" if (error := found.checks[combination.model].worst_rms_error) is None else f"{error:.1e}",
    ]


def _phase_rows(number: int, timing: CombinationTiming) -> Iterator[list[str]]:
    for phase, values in timing.phase_ms.items():
        floor = getattr(timing.floors, phase, None)
        launches = (timing.launches or {}).get(phase)
        busy = timing.busy_share(phase)
        yield [
            str(number),
            phase,
            _median(values, 1),
            _spread(values, 1),
            _number(floor, 1),
            _number(statistics.median(values) / floor if floor else None, 2),
            "-" if busy is None else f"{busy:.0%}",
            "-" if launches is None else str(launches.kernels),
            "-" if launches is None else str(launches.host_launches),
        ]


def _median(values: Sequence[float], digits: int) -> str:
    return _number(statistics.median(values) if values else None, digits)


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{min(values):.{digits}f}..{max(values):.{digits}f}" if values else "-"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows of a table, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
