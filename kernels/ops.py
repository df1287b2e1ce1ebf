"""One place that decides which implementation of each operation runs, and says so."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from toprovar_batch.kernels.layout import TokenLayout

from . import residual_norm
from .bit_sampling import sample_bits
from .flash_attention import AttentionInputs, attention, attention_entropy
from .flash_attention.config import MAX_HEAD_DIM, beats_cudnn, capability_of
from .linear_gelu import fused_linear_gelu, fuses_tanh_form
from .linear_gelu import linear_gelu as plain_linear_gelu
from .qk_norm_rope import naive as naive_qk_norm_rope
from .qk_norm_rope import qk_norm_rope
from .residual_norm import Modulation

__all__ = [
    "PYTORCH",
    "AttentionInputs",
    "Backend",
    "Modulation",
    "add_and_norm",
    "attend",
    "attention",
    "fastest_attention",
    "gated_add",
    "linear_gelu",
    "modulated_norm",
    "qk_norm_rope",
    "qk_norm_rope_append",
    "resolve_backend",
    "sample_bits",
]


@dataclass(frozen=True)
class Backend:
    """The implementation in use and why, as a run's record states it.

    Attributes:
        name: "torch" or "triton".
        reason: why this one.
    """

    name: str
    reason: str


PYTORCH = Backend("torch", "asked for")


def resolve_backend(setting: str, device: torch.device, head_dim: int) -> Backend:
    """Choose the implementation for `device`.

    Args:
        setting: "auto", "torch" or "triton".
        device: where the model runs.
        head_dim: of its attention heads.

    Raises:
        ValueError: `setting` names no backend, or one that cannot run here; says why.
    """
    if setting == "torch":
        return PYTORCH
    if setting not in {"auto", "triton"}:
        raise ValueError(f"no backend named {setting!r}; choose auto, torch or triton")
    obstacle = _obstacle_to_triton(device, head_dim)
    if obstacle is None:
        return Backend("triton", "asked for" if setting == "triton" else "a small kernel ran")
    if setting == "triton":
        raise ValueError(f"the triton backend cannot run here: {obstacle}; choose auto or torch")
    return Backend("torch", obstacle)


def _obstacle_to_triton(device: torch.device, head_dim: int) -> str | None:
    """Why Triton's kernels cannot run, or None where they can, which a small one has then shown."""
    if device.type != "cuda":
        return f"Triton's kernels need a GPU, and this is {device.type}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return (
            f"Triton's kernels need compute capability 8.0, and {torch.cuda.get_device_name(device)} is older"
        )
    if head_dim > MAX_HEAD_DIM:
        return f"Triton's attention takes heads of up to {MAX_HEAD_DIM} channels, and these have {head_dim}"
    try:
        from .flash_attention.launch import mean_over_heads  # noqa: PLC0415 - imports Triton

        mean_over_heads(torch.zeros(1, 1, device=device))
    except Exception as error:  # noqa: BLE001 - compilers and drivers fail in many ways, and each is a reason
        return f"Triton fails on a small kernel: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return None


def qk_norm_rope_append(
    qkv: Tensor,
    q_scale: Tensor,
    rotation: Tensor,
    layout: TokenLayout,
    starts: tuple[int, ...],
    keys: Tensor,
    values: Tensor,
    *,
    backend: Backend,
) -> Tensor:
    """Normalise and rotate q and k, and write k and v into a layer's cache.

    Args:
        qkv: [T, 3, H, D] packed by `layout`.
        q_scale: [H] float32, the learned factor on the queries.
        rotation: [N, D / 2] complex64, one turn for each place of the scale's token map.
        layout: rows of the packed tokens.
        starts: the slot of each row's first token; the others of the row follow.
        keys: [R, H, S, D] of the dtype of `qkv`.
        values: [R, H, S, D] likewise.
        backend: as resolved.

    Returns:
        q, [T, H, D] in the dtype of `qkv`.
    """
    if backend.name == "triton":
        from .qk_norm_rope import launch  # noqa: PLC0415 - imports Triton

        return launch.qk_norm_rope_append(qkv, q_scale, rotation, layout, starts, keys, values)
    return naive_qk_norm_rope.qk_norm_rope_append(qkv, q_scale, rotation, layout, starts, keys, values)


def attend(
    inputs: AttentionInputs, *, entropy_rows: Sequence[int], backend: Backend
) -> tuple[Tensor, Tensor | None]:
    """Softmax attention of packed queries over each row's own keys and, if asked for, its entropy.

    Rows that are all alike go to PyTorch on any backend, whose cuDNN is the fastest exact attention for them, unless our
    kernel was measured to be faster. Other rows would need a mask or a loop in PyTorch, so the Triton kernel takes them.
    The output is the same, bit for bit, whether the entropy is measured or not.

    Args:
        inputs: queries, keys and values.
        entropy_rows: also measure the entropy of these rows: in the pass that attends, where that is the Triton
            kernel's, in one of its own otherwise.
        backend: as resolved.

    Returns:
        [T, H, D] in the dtype of `q`; the entropy of the queries of `entropy_rows`, row after row, float32 in nats, mean
        over heads, or None where there are no such rows.
    """
    if backend.name == "triton" and not _is_fastest_in_pytorch(inputs):
        return _attend_by_kernel(inputs, entropy_rows)
    out = attention(inputs)
    if not entropy_rows:
        return out, None
    if backend.name == "torch":
        return out, attention_entropy(inputs, entropy_rows)
    # The kernel's own output would differ in rounding, and watching a prompt must not change its picture. It need not
    # see the rows behind the last watched one: conditional rows come first, so these are mostly half of all.
    return out, _attend_by_kernel(inputs.first_rows(max(entropy_rows) + 1), entropy_rows)[1]


def _attend_by_kernel(inputs: AttentionInputs, entropy_rows: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """By the Triton kernel, with the entropy of all rows or of none: a launch for each kind of row takes longer."""
    from .flash_attention.launch import flash_attention  # noqa: PLC0415 - imports Triton

    out, entropy = flash_attention(inputs, with_entropy=bool(entropy_rows))
    return out, None if entropy is None else inputs.layout.of_rows(entropy, entropy_rows)


def _is_fastest_in_pytorch(inputs: AttentionInputs) -> bool:
    """Whether PyTorch has one call for these rows, and our kernel is not known to be faster."""
    length, seen = inputs.layout.uniform_length, inputs.key_lengths.lengths
    if length is None or not inputs.is_uniform:
        return False
    return not beats_cudnn(capability_of(inputs.q.device), inputs.q.shape[2], inputs.q.dtype, length, seen[0])


def modulated_norm(
    x: Tensor, modulation: Modulation, layout: TokenLayout, dtype: torch.dtype, *, backend: Backend
) -> Tensor:
    """LN(x) * scale + shift, with the scale and the shift of each token's row.

    Args:
        x: [T, C] float32 packed by `layout`.
        modulation: scale and shift, [R, C] float32 each; or [C] in any dtype, the same for all rows.
        layout: rows of the packed tokens.
        dtype: of the result.
        backend: as resolved.

    Returns:
        [T, C] in `dtype`; computed in float32. Its bits depend on the token and its row alone.
    """
    if backend.name == "triton":
        normed = _residual_norm(x, None, None, modulation, layout, dtype)[1]
        assert normed is not None
        return normed
    return residual_norm.modulated_norm(x, modulation, layout, dtype)


def add_and_norm(
    x: Tensor,
    update: Tensor,
    gate: Tensor | None,
    modulation: Modulation,
    layout: TokenLayout,
    dtype: torch.dtype,
    *,
    backend: Backend,
) -> tuple[Tensor, Tensor]:
    """X + gate * update in float32, and LN of that * scale + shift, in one pass over a row.

    Args:
        x: [T, C] float32 packed by `layout`; it stays as it is on every backend.
        update: [T, C] in the compute dtype.
        gate: [R, C] float32; None: 1.
        modulation: scale and shift, [R, C] float32 each; or [C] in any dtype, the same for all rows.
        layout: rows of the packed tokens.
        dtype: of the normed result.
        backend: as resolved.

    Returns:
        The sum [T, C] float32, and its norm [T, C] in `dtype`.
    """
    if backend.name == "triton":
        added, normed = _residual_norm(x, update, gate, modulation, layout, dtype)
        assert normed is not None
        return added, normed
    return residual_norm.add_and_norm(x, update, gate, modulation, layout, dtype)


def gated_add(
    x: Tensor, update: Tensor, gate: Tensor | None, layout: TokenLayout, *, backend: Backend
) -> Tensor:
    """X + gate * update in float32: what `add_and_norm` does where no norm follows.

    Args:
        x: [T, C] float32 packed by `layout`; it stays as it is on every backend.
        update: [T, C] in the compute dtype.
        gate: [R, C] float32; None: 1.
        layout: rows of the packed tokens.
        backend: as resolved.

    Returns:
        [T, C] float32.
    """
    if backend.name == "triton":
        return _residual_norm(x, update, gate, None, layout, None)[0]
    return residual_norm.gated_add(x, update, gate, layout)


def _residual_norm(
    x: Tensor,
    update: Tensor | None,
    gate: Tensor | None,
    modulation: Modulation | None,
    layout: TokenLayout,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor | None]:
    from .residual_norm.launch import residual_norm as by_kernel  # noqa: PLC0415 - imports Triton

    return by_kernel(x, update, gate, modulation, layout, dtype)


def linear_gelu(layer: nn.Linear, x: Tensor, *, backend: Backend) -> Tensor:
    """GELU (tanh form) of a linear layer: [T, C] to [T, F]; one product where PyTorch's fused form is that one."""
    if backend.name == "triton" and fuses_tanh_form(x.device, x.dtype):
        return fused_linear_gelu(layer, x)
    return plain_linear_gelu(layer, x)


@contextmanager
def fastest_attention(device: torch.device) -> Iterator[None]:
    """Let PyTorch's attention choose in the order of speed measured for this model's shapes on a GPU."""
    if device.type != "cuda":
        yield
        return
    order = [
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ]
    with sdpa_kernel(order, set_priority=True):
        yield
