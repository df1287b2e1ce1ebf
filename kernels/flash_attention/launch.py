"""Host side of the GPU kernels: checks, tables, descriptors and launches."""

import functools
import math

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor as GluonDescriptor
from triton.tools.tensor_descriptor import TensorDescriptor

from toprovar_batch.kernels.layout import DeviceBlocks

from .config import DTYPES, MAX_HEAD_DIM, KernelConfig, capability_of, choose_config, padded_head_dim
from .hopper_kernel import GROUP, hopper_attention_kernel
from .inputs import AttentionInputs
from .triton_kernel import attention_kernel, mean_over_heads_kernel

_MEAN_BLOCK = 256
# A step may begin with the last row of the matrix and end behind it.
_MOST_ROWS = 2**31 - 1024
# What setmaxnreg gives: 2 groups compute, 1 loads; (2 * 240 + 24) * 128 threads fill the 64K registers.
_COMPUTE_REGISTERS, _LOAD_REGISTERS = 240, 24


def flash_attention(
    inputs: AttentionInputs,
    *,
    with_entropy: bool,
    watched_rows: int | None = None,
    average_heads: bool = True,
    config: KernelConfig | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Softmax attention of packed queries over each row's own keys, and the entropy of each query's attention.

    What lies behind a row's keys may be anything, NaN too. An answer depends on its own query and its row's keys
    alone, bit for bit.

    Args:
        inputs: in bfloat16, float16 or float32, with heads of at most 256 channels. Keys and values may have any strides
            but a last one of 1, and a row with queries sees at least one key. Scores must stay below 2**27 in magnitude.
        with_entropy: also measure the entropy.
        watched_rows: whose entropy is wanted, the first ones; all where left out. What is returned for the queries of
            others is not defined.
        average_heads: whether the entropy is the mean over heads.
        config: how the kernel is built; what was measured best where left out.

    Returns:
        [T, H, D] in the dtype of `q`; and the entropy, float32 nats, [T] or, not averaged, [H, T]; None unless asked.

    Raises:
        ValueError: inputs that the kernels cannot take; says which.
    """
    _check(inputs)
    q = inputs.q
    tokens, heads, head_dim = q.shape
    if config is None:
        config = choose_config(capability_of(q.device), head_dim, q.dtype)
    out = q.new_empty(q.shape)
    by_head = q.new_empty((heads, tokens) if with_entropy else (1,), dtype=torch.float32)
    if tokens:
        watched = inputs.layout.num_rows if watched_rows is None else watched_rows
        work = _Work(inputs, out, by_head, watched if with_entropy else 0)
        if config.kernel == "hopper" and work.can_describe_keys:
            work.launch_hopper(config)
        else:
            work.launch_triton(config)
    if not with_entropy:
        return out, None
    return out, mean_over_heads(by_head) if average_heads else by_head


def mean_over_heads(by_head: Tensor) -> Tensor:
    """[H, T] float32 to [T], heads added in their order."""
    heads, tokens = by_head.shape
    mean = by_head.new_empty(tokens)
    if tokens:
        grid = (-(-tokens // _MEAN_BLOCK),)
        mean_over_heads_kernel[grid](by_head, mean, tokens, HEADS=heads, BLOCK=_MEAN_BLOCK)
    return mean


class _Work:
    """The arguments of one call, as both kernels take them."""

    def __init__(self, inputs: AttentionInputs, out: Tensor, by_head: Tensor, watched_rows: int) -> None:
        self.inputs = inputs
        self.q, self.keys, self.values, _, self.key_lengths, softmax_scale = inputs
        self.out, self.by_head = out, by_head
        self.scale = softmax_scale * math.log2(math.e)
        self.watched_rows = watched_rows
        self.is_ragged = not inputs.is_uniform
        self.can_describe_keys = _is_describable(self.keys) and _is_describable(self.values)

    def _blocks(self, block_m: int) -> tuple[Tensor, int, int]:
        """The table of blocks (any tensor where rows are alike), blocks of a row, blocks of all rows."""
        if isinstance(self.key_lengths, DeviceBlocks):
            if self.key_lengths.block_m != block_m:
                raise ValueError(
                    f"blocks of {self.key_lengths.block_m} queries, where the kernel takes {block_m}"
                )
            return self.key_lengths.table, 1, self.key_lengths.table.shape[1]
        layout, key_lengths = self.inputs.host_rows
        if not self.is_ragged:
            per_row = -(-layout.row_lengths[0] // block_m)
            return self.by_head, per_row, per_row * layout.num_rows
        table = layout.blocks(key_lengths, block_m)
        return table, 1, table.shape[1]

    @property
    def _row(self) -> tuple[int, int]:
        """Queries and keys of a row, where all are alike."""
        if self.is_ragged:
            return 0, 0
        layout, key_lengths = self.inputs.host_rows
        return layout.row_lengths[0], key_lengths.lengths[0]

    def launch_triton(self, config: KernelConfig) -> None:
        """Run the Triton kernel: one program per tile."""
        q, keys, values, out = self.q, self.keys, self.values, self.out
        tokens, heads, head_dim = q.shape
        blocks, per_row, num_blocks = self._blocks(config.block_m)
        block_d = padded_head_dim(head_dim)
        descriptors = config.descriptors and self.can_describe_keys
        rows = [keys, values]
        if descriptors:
            rows = [TensorDescriptor(*_flat(each), [config.block_n, block_d]) for each in rows]
        attention_kernel[num_blocks * heads,](
            q, keys, values, *rows, out, self.by_head, blocks,
            *self._row, per_row, num_blocks, tokens, self.scale,
            *q.stride()[:2], *keys.stride()[:3], *values.stride()[:3], *out.stride()[:2],
            HEAD_DIM=head_dim, BLOCK_D=block_d, BLOCK_M=config.block_m, BLOCK_N=config.block_n,
            ENTROPY=self.watched_rows > 0, RAGGED=self.is_ragged, DESCRIPTORS=descriptors,
            PRODUCTS=_products(q),
            num_warps=config.num_warps, num_stages=config.num_stages, enable_fp_fusion=True,
        )  # fmt: skip

    def launch_hopper(self, config: KernelConfig) -> None:
        """Run the Hopper kernel: a program per multiprocessor, each taking every n-th tile."""
        tokens, heads, head_dim = self.q.shape
        q = self.q if _is_describable(self.q) and self.q.stride(1) == head_dim else self.q.contiguous()
        blocks, per_row, num_blocks = self._blocks(2 * GROUP)
        tiles = num_blocks * heads

        def describe(base: Tensor, shape: list[int], strides: list[int], block_rows: int) -> GluonDescriptor:
            block = [block_rows, head_dim]
            return GluonDescriptor(base, shape, strides, block, _shared_layout(block_rows, head_dim, q.dtype))

        hopper_attention_kernel[min(tiles, _multiprocessors(q.device)),](
            describe(q, [tokens, heads * head_dim], [q.stride(0), 1], GROUP),
            describe(*_flat(self.keys), config.block_n),
            describe(*_flat(self.values), config.block_n),
            self.out, self.by_head, blocks,
            *self._row, per_row, num_blocks, tiles, tokens, self.watched_rows, self.scale,
            *(stride // self.keys.stride(2) for stride in self.keys.stride()[:2]),
            *(stride // self.values.stride(2) for stride in self.values.stride()[:2]),
            *self.out.stride()[:2],
            HEAD_DIM=head_dim, BLOCK_N=config.block_n, STAGES=config.num_stages, RAGGED=self.is_ragged,
            ENTROPY=self.watched_rows > 0, COMPUTE_REGISTERS=_COMPUTE_REGISTERS, LOAD_REGISTERS=_LOAD_REGISTERS,
            num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip


def _is_describable(tensor: Tensor) -> bool:
    """Whether [..., N, D] is part of one matrix of rows of D: what a bulk copy needs, with 16-byte alignment.

    A bulk copy counts those rows in 32 bits.
    """
    *outer, row, _last = tensor.stride()
    return (
        tensor.data_ptr() % 16 == 0
        and row > 0
        and row * tensor.element_size() % 16 == 0
        and all(stride % row == 0 for stride in outer)
        and _last_place(tensor) // row < _MOST_ROWS
    )


def _flat(tensor: Tensor) -> tuple[Tensor, list[int], list[int]]:
    """[R, H, N, D] as a matrix of rows of D: the tensor, the matrix's shape and its strides."""
    row = tensor.stride(2)
    return tensor, [_last_place(tensor) // row + 1, tensor.shape[3]], [row, 1]


def _last_place(tensor: Tensor) -> int:
    """Elements before the last row of D."""
    return sum(
        (size - 1) * stride for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True)
    )


@functools.cache
def _shared_layout(rows: int, head_dim: int, dtype: torch.dtype) -> gl.NVMMASharedLayout:
    element = gl.bfloat16 if dtype == torch.bfloat16 else gl.float16
    return gl.NVMMASharedLayout.get_default_for([rows, head_dim], element)


def _products(q: Tensor) -> str:
    """How the Triton kernel multiplies; 16-bit products are exact in float32 either way."""
    if q.dtype == torch.float32:
        return "tf32x3"  # on tensor cores, nearly as exact as float32
    return "tf32" if q.device.type == "cuda" else "widened"


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _check(inputs: AttentionInputs) -> None:
    q, keys, values, layout, key_lengths, softmax_scale = inputs
    tokens, heads, head_dim = q.shape
    rows, key_heads, longest, key_dim = keys.shape
    if values.shape != keys.shape or (key_heads, key_dim) != (heads, head_dim):
        raise ValueError(
            f"keys {tuple(keys.shape)} and values {tuple(values.shape)} must be [R, {heads}, N, {head_dim}]"
        )
    if tokens != layout.num_tokens or rows != layout.num_rows or rows != key_lengths.num_rows:
        raise ValueError(
            f"{tokens} queries and {rows} rows of keys do not fit {layout.num_tokens} queries of "
            f"{layout.num_rows} rows with {key_lengths.num_rows} lengths of keys"
        )
    if head_dim > MAX_HEAD_DIM:
        raise ValueError(f"the kernel takes heads of up to {MAX_HEAD_DIM} channels, not {head_dim}")
    if q.dtype not in DTYPES or keys.dtype != q.dtype or values.dtype != q.dtype:
        raise ValueError(
            "the kernel takes bfloat16, float16 or float32, the same for all; "
            f"got {q.dtype}, {keys.dtype}, {values.dtype}"
        )
    if any(tensor.stride(-1) != 1 for tensor in (q, keys, values)):
        raise ValueError("the channels of a head must lie side by side (a last stride of 1)")
    if softmax_scale <= 0:
        raise ValueError(f"softmax_scale must be positive, not {softmax_scale}")
    if isinstance(key_lengths, DeviceBlocks):
        return  # who filled the table knows
    layout, key_lengths = inputs.host_rows
    for row, (queries, seen) in enumerate(zip(layout.row_lengths, key_lengths.lengths, strict=True)):
        if seen > longest or (queries and not seen):
            raise ValueError(f"row {row} has {queries} queries over {seen} of {longest} keys")
