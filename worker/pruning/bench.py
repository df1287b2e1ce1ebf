"""How long the statistics of a plan take: `python -m toprovar_batch.worker.pruning.bench --device cuda`.

Times are medians of wall time between synchronisations.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from toprovar_batch.worker.infinity.schedule import scale_schedule

from .plan import token_sets
from .policies.base import BatchContext
from .policies.fit import representative_scale
from .policies.specs import ToprovarSpec
from .policies.token_ranking import rank_tokens
from .policies.toprovar import ToprovarPolicy
from .statistics import low_entropy_ratio, singular_value_ratio


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one piece of work, the median of its repeats."""

    name: str
    milliseconds: float


def time_statistics(
    device: torch.device, layers: int = 40, prompts: int = 8, repeats: int = 20
) -> list[Timing]:
    """Time the statistics of one batch at the 1M schedule.

    Args:
        device: to time on.
        layers: L.
        prompts: B.
        repeats: timed runs; as many as a quarter of them come before.
    """
    schedule = scale_schedule(1.0, "1M")
    representative = representative_scale(ToprovarSpec(), len(schedule))
    size = schedule[representative]
    generator = torch.Generator().manual_seed(0)
    maps = 5 + torch.rand(layers, prompts, *size, generator=generator).to(device)
    last = 5 + torch.rand(layers, prompts, schedule[-1][0] * schedule[-1][1], generator=generator).to(device)
    scores = torch.rand(layers, prompts, generator=generator).to(device)
    seeds = torch.arange(prompts, device=device)
    spec = ToprovarSpec(scale_pruning=False)

    def plan_a_scale() -> object:
        ranking = rank_tokens(spec, last, scores, len(schedule) - 1, len(schedule), seeds)
        return token_sets(ranking.counts.tolist(), ranking.keys, last.shape[-1], device)

    def plan_from_maps() -> object:
        policy = ToprovarPolicy(spec, BatchContext(schedule, layers, seeds))
        for layer in range(layers):
            policy.observe(representative, layer, maps[layer].flatten(1))
        return policy.plan(representative + 1)

    works: dict[str, Callable[[], object]] = {
        f"ratio of singular values of {layers} x {prompts} maps {size[0]}x{size[1]}": lambda: (
            singular_value_ratio(maps)
        ),
        "low-entropy ratio of the last scale": lambda: low_entropy_ratio(last.mean(0)),
        "a whole plan after the representative scale": plan_from_maps,
        "token sets of the last scale": plan_a_scale,
    }
    return [Timing(name, _median_ms(work, device, repeats)) for name, work in works.items()]


def _median_ms(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    times = []
    for run in range(repeats + repeats // 4):
        _synchronize(device)
        start = time.perf_counter()
        work()
        _synchronize(device)
        if run >= repeats // 4:
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(arguments: list[str]) -> None:
    """Print the timings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}")
    for timing in time_statistics(device, options.layers, options.prompts, options.repeats):
        print(f"{timing.milliseconds:9.3f} ms  {timing.name}")


if __name__ == "__main__":
    main(sys.argv[1:])
