"""The attention kernels and PyTorch's, timed side by side at the models' real shapes."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from toprovar_batch.kernels.flash_attention import AttentionInputs, attention
from toprovar_batch.kernels.flash_attention.config import KernelConfig, capability_of, choose_config
from toprovar_batch.kernels.flash_attention.launch import flash_attention
from toprovar_batch.kernels.ops import Backend, attend, fastest_attention
from toprovar_batch.worker.infinity.schedule import scale_schedule
from toprovar_batch.worker.presets import get_preset

from .attention_check import find_fault_at, make_inputs

_MILLISECONDS = 4.0  # a measurement lasts at least about so long
_MOST_CALLS = 40
_Call = Callable[[], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class AttentionCase:
    """Shapes of one call.

    Attributes:
        name: for the table.
        heads, head_dim: H, D.
        queries, keys: of each row.
    """

    name: str
    heads: int
    head_dim: int
    queries: tuple[int, ...]
    keys: tuple[int, ...]

    @property
    def flops(self) -> float:
        """Multiplications and additions of both matrix products."""
        pairs = sum(q * k for q, k in zip(self.queries, self.keys, strict=True))
        return 4.0 * self.heads * self.head_dim * pairs

    @property
    def is_dense(self) -> bool:
        """Whether all rows are alike."""
        return len(set(self.queries)) == 1 == len(set(self.keys))


@dataclass
class CaseTiming:
    """Milliseconds per call of each contender, one for each repeat.

    Attributes:
        case: what was timed.
        milliseconds: by contender: "entropy" and "plain" (the kernel with and without), "flash" and "cudnn"
            (PyTorch's), or "pytorch" (its loop over rows, or its mask) where rows differ; "watched" and "unwatched", as
            the model calls them: the fastest way to attend, with the entropy of the first half of the rows, and without.
        launch_us: what a call of the kernel with entropy takes of the host's time.
        errors: by contender, why it was not timed.
    """

    case: AttentionCase
    milliseconds: dict[str, list[float]] = field(default_factory=dict)
    launch_us: float = 0.0
    errors: dict[str, str] = field(default_factory=dict)

    def median(self, contender: str) -> float | None:
        """Milliseconds per call."""
        values = self.milliseconds.get(contender)
        return statistics.median(values) if values else None

    def ratio(self, contender: str, to: str) -> float | None:
        """How long one takes over another: the median of the repeats' ratios, since neighbours share a clock."""
        pairs = zip(self.milliseconds.get(contender, ()), self.milliseconds.get(to, ()), strict=False)
        ratios = [ours / theirs for ours, theirs in pairs]
        return statistics.median(ratios) if ratios else None

    def spread(self, contender: str) -> float | None:
        """Largest less smallest, over the median."""
        values = self.milliseconds.get(contender)
        return (max(values) - min(values)) / statistics.median(values) if values else None

    def teraflops(self, contender: str) -> float | None:
        """10**12 operations a second, from the median."""
        median = self.median(contender)
        return self.case.flops / median / 1e9 if median else None


def dense_cases(preset: str, rows: int, scales: tuple[int, ...]) -> list[AttentionCase]:
    """Self-attention of a preset's square schedule at some of its scales (indices), all tokens kept."""
    model = get_preset(preset)
    sizes = model.transformer
    areas = [h * w for h, w in scale_schedule(1.0, model.resolution)]
    short = preset.removeprefix("infinity-").upper()
    return [
        AttentionCase(
            f"{short} {areas[scale]} x {sum(areas[: scale + 1])}, {rows} rows",
            sizes.num_heads,
            sizes.head_dim,
            (areas[scale],) * rows,
            (sum(areas[: scale + 1]),) * rows,
        )
        for scale in scales
    ]


def ragged_cases() -> list[AttentionCase]:
    """Pruned scales of 2B, 4 prompts with guidance: 3% of the last map's tokens; and queries over texts."""
    kept = (123, 96, 140, 71)
    cached = (4300, 4510, 6602, 5060)
    texts = (14, 9, 41, 23)
    return [
        AttentionCase("2B pruned to 3%, 8 rows", 16, 128, kept * 2, cached * 2),
        AttentionCase("2B 4096 x 4 lengths, 8 rows", 16, 128, (4096,) * 8, cached * 2),
        AttentionCase("2B 4096 x text, 8 rows", 16, 128, (4096,) * 8, texts * 2),
    ]


def time_case(
    case: AttentionCase, device: torch.device, repeats: int, config: KernelConfig | None = None
) -> CaseTiming:
    """Check, then time a case in bfloat16; contenders take turns within each repeat.

    Raises:
        FaultyKernelError: an answer is off; nothing was timed.
    """
    inputs = make_inputs(case.heads, case.head_dim, case.queries, case.keys, torch.bfloat16, device)
    contenders = _contenders(case, inputs, config)
    out, entropy = contenders["entropy"]()
    assert entropy is not None
    fault = find_fault_at(inputs, out, entropy)
    if fault:
        raise FaultyKernelError(f"{case.name}: {fault}")
    timing = CaseTiming(case)
    graphs: dict[str, tuple[torch.cuda.CUDAGraph, int]] = {}
    for name, call in contenders.items():
        try:
            graphs[name] = _capture(call)
        except RuntimeError as error:
            timing.errors[name] = " ".join(str(error).split())[:200]
    for _ in range(repeats):
        for name, (graph, calls) in graphs.items():
            timing.milliseconds.setdefault(name, []).append(_replay(graph) / calls)
    timing.launch_us = _launch_us(contenders["entropy"])
    return timing


class FaultyKernelError(Exception):
    """A kernel gives wrong answers, in words."""


def _contenders(
    case: AttentionCase, inputs: AttentionInputs, config: KernelConfig | None
) -> dict[str, _Call]:
    def kernel(with_entropy: bool) -> _Call:
        return lambda: flash_attention(inputs, with_entropy=with_entropy, config=config)

    def pytorch(backend: SDPBackend) -> _Call:
        q = inputs.host_rows[0].by_row(inputs.q).transpose(1, 2)  # [R, H, L, D]

        def call() -> tuple[Tensor, None]:
            with sdpa_kernel(backend):
                out = scaled_dot_product_attention(q, inputs.keys, inputs.values, scale=inputs.softmax_scale)
            return out, None

        return call

    contenders = {"entropy": kernel(with_entropy=True), "plain": kernel(with_entropy=False)}
    if case.is_dense:
        contenders["flash"] = pytorch(SDPBackend.FLASH_ATTENTION)
        contenders["cudnn"] = pytorch(SDPBackend.CUDNN_ATTENTION)
    else:

        def pytorch_by_rows() -> tuple[Tensor, None]:
            with fastest_attention(inputs.q.device):
                return attention(inputs), None

        contenders["pytorch"] = pytorch_by_rows
    if config in {None, choose_config(capability_of(inputs.q.device), case.head_dim, inputs.q.dtype)}:
        contenders |= {"watched": _attend(inputs, len(case.keys) // 2), "unwatched": _attend(inputs, 0)}
    return contenders


def _attend(inputs: AttentionInputs, watched: int) -> _Call:
    """`attend` as the model calls it, with the entropy of the first `watched` rows."""

    def call() -> tuple[Tensor, Tensor | None]:
        with fastest_attention(inputs.q.device):
            return attend(inputs, entropy_rows=range(watched), backend=Backend("triton", "to be timed"))

    return call


def _capture(call: Callable[[], object]) -> tuple[torch.cuda.CUDAGraph, int]:
    """A graph of several calls, so that the host's pace does not count; and how many."""
    call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    calls = max(1, min(_MOST_CALLS, int(_MILLISECONDS / 1e3 / (time.perf_counter() - start)) + 1))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    graph.replay()
    return graph, calls


def _replay(graph: torch.cuda.CUDAGraph) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _launch_us(call: Callable[[], object], calls: int = 20) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    elapsed = time.perf_counter() - start
    torch.cuda.synchronize()
    return 1e6 * elapsed / calls
