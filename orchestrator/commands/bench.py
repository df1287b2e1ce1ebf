"""The `bench` command: how fast a model generates on this machine, and where the time goes."""

import json
import platform
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import click

from toprovar_batch import __version__
from toprovar_batch.orchestrator.benchmark.commit import describe_commit
from toprovar_batch.worker.errors import ModelSpecError, RunFailedError, UserError

if TYPE_CHECKING:
    from toprovar_batch.worker.generated import GeneratedBatch, PhaseTimes
    from toprovar_batch.worker.generator import Generator
    from toprovar_batch.worker.resolved import ResolvedSpec
    from toprovar_batch.worker.specs import RuntimeSpec

_PROMPTS = (
    "a photo of a red apple on a wooden table beside a blue ceramic cup",
    "an old lighthouse on a cliff above a stormy sea at dusk, oil painting, thick brush strokes",
    "a crowded night market in the rain, neon signs reflected in puddles, people under umbrellas",
    "portrait of an astronaut reading a newspaper in a small cafe, soft window light, shallow focus",
    "three glass bottles, green, amber and clear, in a row on a marble shelf",
    "an isometric map of a small island with a harbour, a windmill, pine trees and a winding path",
    "a grey cat asleep on a stack of books, watercolour",
    "macro photograph of frost on a spider web, backlit by the morning sun, very fine detail",
)


@dataclass
class BatchTiming:
    """Timings of one policy at one batch size; milliseconds are medians over the repeats.

    Attributes:
        policy: as named on the command line.
        batch: images per batch.
        seconds: wall time of a batch, each repeat's.
        images_per_second: from the median.
        text_ms, transformer_ms, decode_ms, encode_ms: the split of a batch.
        scale_ms: transformer, sampling and codes of each scale, measured on the device.
        peak_memory_gb: of the device, weights included (GPU only), 10**9 bytes.
        token_layer_fraction: token-layers that ran over those of the dense model, mean over the images.
        error: why there are no timings, or None.
    """

    policy: str
    batch: int
    seconds: list[float] = field(default_factory=list)
    images_per_second: float = 0.0
    text_ms: float = 0.0
    transformer_ms: float = 0.0
    decode_ms: float = 0.0
    encode_ms: float = 0.0
    scale_ms: list[float] = field(default_factory=list)
    peak_memory_gb: float | None = None
    token_layer_fraction: float = 1.0
    error: str | None = None


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


@click.command("bench")
@click.option("--model", "preset", default="tiny", show_default=True, help="Preset to measure.")
@click.option("--random-weights", is_flag=True, help="Full size, seeded random weights, no files.")
@click.option("--batch", "batches", type=BatchList(), default="1,4,8", show_default=True)
@click.option("--resolution", help="0.06M, 0.25M, 0.60M or 1M; the preset's where left out.")
@click.option("--h-div-w", type=float, default=1.0, show_default=True, help="Height over width.")
@click.option(
    "--policy", "policies", multiple=True, default=["dense"], show_default=True,
    help="Name, paper-2b, or a policy file (YAML); several are timed side by side, as ratios to the first.",
)  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--backend", type=click.Choice(["auto", "torch", "triton"]), default="auto", show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option("--warmup", type=click.IntRange(0), default=2, show_default=True)
@click.option(
    "--accuracy", is_flag=True,
    help="Compare bfloat16 and float32 with float32 in plain PyTorch, per scale and on random weights; time nothing.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def bench_command(
    preset: str,
    random_weights: bool,
    batches: tuple[int, ...],
    resolution: str | None,
    h_div_w: float,
    policies: tuple[str, ...],
    device: Literal["auto", "cpu", "cuda"],
    backend: Literal["auto", "torch", "triton"],
    repeats: int,
    warmup: int,
    accuracy: bool,
    as_json: bool,
) -> None:
    """Time generation at several batch sizes and under several policies, and its split over the parts of a batch."""
    from pydantic import ValidationError  # noqa: PLC0415 - only here

    from toprovar_batch.orchestrator.job.policy_file import read_policy  # noqa: PLC0415 - only here
    from toprovar_batch.worker.generator import Generator  # noqa: PLC0415 - imports torch
    from toprovar_batch.worker.resolved import resolve  # noqa: PLC0415
    from toprovar_batch.worker.specs import EngineSpec, ImageSpec, ModelSpec, RuntimeSpec  # noqa: PLC0415

    try:
        spec = EngineSpec(
            model=ModelSpec(preset=preset, random_weights=random_weights),
            image=ImageSpec.model_validate({"resolution": resolution, "h_div_w": h_div_w}),
        )
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise UserError(f"{option}: {first['msg']}, got {first['input']!r}") from error
    if accuracy:
        _report_accuracy(resolve(spec), RuntimeSpec(device=device, backend=backend), as_json=as_json)
        return
    specs = {policy: read_policy(policy) for policy in policies}
    generator = Generator(resolve(spec), RuntimeSpec(device=device, backend=backend))
    for name, each in specs.items():
        try:
            generator.with_policy(each)  # what does not fit is said before the weights are made
        except ModelSpecError as error:
            raise UserError(f"--policy {name}: {error}") from error
    generator.setup()
    generators = {policy: generator.with_policy(each) for policy, each in specs.items()}
    timings = [
        measure(generators[policy], policy, batch, h_div_w, warmup, repeats)
        for batch in batches
        for policy in policies
    ]
    record = {
        "command": "toprovar-batch " + " ".join(sys.argv[1:]),
        "version": __version__,
        "commit": describe_commit(),
        "python": platform.python_version(),
        "policies": {policy: each.model_dump(mode="json") for policy, each in specs.items()},
        "engine": generator.describe() | generator.usage(),
        "batches": [asdict(timing) for timing in timings],
    }
    if as_json:
        click.echo(json.dumps(record, indent=2))
    else:
        _print_table(record, timings)
    if all(timing.error for timing in timings):
        raise RunFailedError(f"no batch size could be measured: {timings[0].error}")


def _report_accuracy(spec: "ResolvedSpec", runtime: "RuntimeSpec", *, as_json: bool) -> None:
    """Print how exact each compute dtype is on a runtime's device and backend."""
    import torch  # noqa: PLC0415 - keeps --help fast

    from toprovar_batch.orchestrator.benchmark.accuracy import measure_accuracy  # noqa: PLC0415
    from toprovar_batch.worker.runtime import resolve_device, resolve_kernels  # noqa: PLC0415

    device = resolve_device(runtime.device)
    backend = resolve_kernels(runtime.backend, device, spec.model.transformer.head_dim)
    found = {
        dtype: measure_accuracy(spec, dtype=getattr(torch, dtype), backend=backend, device=device)
        for dtype in ("bfloat16", "float32")
    }
    if as_json:
        scales = {dtype: [asdict(scale) for scale in each] for dtype, each in found.items()}
        click.echo(
            json.dumps({"backend": backend.name, "commit": describe_commit(), "dtypes": scales}, indent=2)
        )
        return
    click.echo(
        f"{backend.name} kernels against float32 in PyTorch: rms error over the largest logit, and flipped bits"
    )
    for dtype, each in found.items():
        for scale in each:
            click.echo(
                f"{dtype:8}  {scale.tokens:5d} tokens  {scale.rms_error:.1e}  {scale.flipped_bits:.3%}"
            )
        click.echo(f"{dtype:8}  worst scale  {max(scale.rms_error for scale in each):.1e}")


def measure(
    generator: "Generator", policy: str, batch: int, h_div_w: float, warmup: int, repeats: int
) -> BatchTiming:
    """Time one policy at one batch size.

    The first run is checked before anything is timed: every logit finite, every picture with contrast.

    Args:
        generator: set up, with the policy.
        policy: its name, for the record.
        batch: images per batch.
        h_div_w: height over width.
        warmup: runs before the timed ones.
        repeats: timed runs.
    """
    import torch  # noqa: PLC0415 - keeps --help fast

    from toprovar_batch.worker.generator import generate_all  # noqa: PLC0415
    from toprovar_batch.worker.images import encode_images  # noqa: PLC0415
    from toprovar_batch.worker.request import GenerationRequest  # noqa: PLC0415

    requests = [
        GenerationRequest(f"bench-{index}", _PROMPTS[index % len(_PROMPTS)], None, index, h_div_w)
        for index in range(batch)
    ]
    timing = BatchTiming(policy, batch)
    runs: list[tuple[PhaseTimes, list[float]]] = []  # of the timed batches
    is_gpu = generator.device.type == "cuda"
    clock = _ScaleClock(is_gpu)
    if is_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        repeated = requests * (1 + warmup + repeats)
        for run, (_, made) in enumerate(generate_all(generator, repeated, batch, clock)):
            scale_ms = clock.take()
            start = time.perf_counter()
            encode_images(made.pixels, generator.spec.image)
            made.times.encode = time.perf_counter() - start
            if run == 0:
                _check(made)
                timing.token_layer_fraction = statistics.fmean(made.fractions)
            if run > warmup:
                timing.seconds.append(made.times.wall + made.times.encode)
                runs.append((made.times, scale_ms))
    except torch.OutOfMemoryError:
        timing.error = "out of GPU memory"
        return timing
    _summarise(timing, runs)
    if is_gpu:
        timing.peak_memory_gb = torch.cuda.max_memory_allocated() / 1e9
    return timing


def _check(made: "GeneratedBatch") -> None:
    if not all(made.finite):
        raise RunFailedError("the model gave logits that are not finite numbers; nothing was timed")
    if any(image.std() == 0 for image in made.pixels):
        raise RunFailedError("the model gave a picture of one colour; nothing was timed")


def _summarise(timing: BatchTiming, runs: "list[tuple[PhaseTimes, list[float]]]") -> None:
    median = statistics.median
    timing.images_per_second = timing.batch / median(timing.seconds)
    timing.text_ms = 1e3 * median(times.text for times, _ in runs)
    timing.transformer_ms = 1e3 * median(times.sample for times, _ in runs)
    timing.decode_ms = 1e3 * median(times.decode for times, _ in runs)
    timing.encode_ms = 1e3 * median(times.encode for times, _ in runs)
    timing.scale_ms = [median(values) for values in zip(*(scales for _, scales in runs), strict=True)]


class _ScaleClock:
    """Marks the end of each scale, on the GPU's own clock where there is one.

    The first mark, of index -1, is made when the transformer starts on the text, so scale 0 includes that.
    """

    def __init__(self, is_gpu: bool) -> None:
        self._is_gpu = is_gpu
        self._marks: list[tuple[int, Any]] = []

    def __call__(self, scale_index: int) -> None:
        if not self._is_gpu:
            self._marks.append((scale_index, time.perf_counter()))
            return
        import torch  # noqa: PLC0415 - keeps --help fast

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append((scale_index, event))

    def take(self) -> list[float]:
        """Milliseconds of each scale, over all the pieces that a batch was made in; the next batch starts anew.

        The device must be idle.
        """
        total: dict[int, float] = defaultdict(float)
        for (_, first), (scale, second) in pairwise(self._marks):
            if scale >= 0:
                total[scale] += first.elapsed_time(second) if self._is_gpu else 1e3 * (second - first)
        self._marks = []
        return [total[scale] for scale in sorted(total)]


def _print_table(record: dict[str, Any], timings: list[BatchTiming]) -> None:
    engine = record["engine"]
    click.echo(
        f"{engine['preset']} ({engine['parameters'] / 1e9:.2f} billion parameters) at {engine['resolution']}, "
        f"{engine['dtype']} on {engine['device']}, {engine['backend']} kernels, torch {engine['torch']}, commit {record['commit']}"
    )
    ratio_to = f"x {timings[0].policy}"
    width = max(len(timing.policy) for timing in timings)
    click.echo(
        f"batch  {'policy':{width}}  token-layers  {ratio_to}  s/batch  images/s  text ms  transformer ms  decode ms  encode ms  peak GB"
    )
    first = {timing.batch: timing for timing in reversed(timings) if timing.policy == timings[0].policy}
    for timing in timings:
        name = f"{timing.batch:5d}  {timing.policy:{width}}"
        if timing.error:
            click.echo(f"{name}  {timing.error}")
            continue
        seconds = statistics.median(timing.seconds)
        base = first[timing.batch].seconds
        ratio = f"{statistics.median(base) / seconds:.2f}" if base else "-"
        peak = "-" if timing.peak_memory_gb is None else f"{timing.peak_memory_gb:.1f}"
        click.echo(
            f"{name}  {timing.token_layer_fraction:12.1%}  {ratio:>{len(ratio_to)}}  {seconds:7.3f}  "
            f"{timing.images_per_second:8.3f}  {timing.text_ms:7.1f}  {timing.transformer_ms:14.1f}  "
            f"{timing.decode_ms:9.1f}  {timing.encode_ms:9.1f}  {peak:>7}"
        )
    for timing in timings:
        if not timing.error:
            scales = " ".join(f"{value:.1f}" for value in timing.scale_ms)
            click.echo(f"batch {timing.batch}, {timing.policy}, ms of each scale: {scales}")
