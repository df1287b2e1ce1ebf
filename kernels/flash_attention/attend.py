"""Who attends: PyTorch, or the Triton kernel."""

from collections.abc import Sequence

from torch import Tensor

from toprovar_batch.kernels.backend import Backend

from .config import capability_of, takes_rows_alike
from .inputs import AttentionInputs
from .naive import attention, attention_entropy


def attend(
    inputs: AttentionInputs,
    *,
    entropy_rows: Sequence[int],
    chance_alike: bool = False,
    backend: Backend,
) -> tuple[Tensor, Tensor | None]:
    """Softmax attention of packed queries over each row's own keys and, if asked for, its entropy.

    Rows that are all alike go to PyTorch on any backend, whose cuDNN is the fastest exact attention for them, but not where
    our kernel takes them as well. Other rows would need a mask or a loop in PyTorch, so the Triton kernel takes them.
    The output is the same, bit for bit, whether the entropy is measured or not.

    Args:
        inputs: queries, keys and values.
        entropy_rows: also measure the entropy of these rows: in the pass that attends, where that is the Triton
            kernel's, in one of its own otherwise.
        chance_alike: rows that are alike are so by chance, as prompts of one length are. So the kernel takes them, for a
            row's bits must not depend on the others.
        backend: as resolved.

    Returns:
        [T, H, D] in the dtype of `q`; the entropy of the queries of `entropy_rows`, row after row, float32 in nats, mean
        over heads, or None where there are no such rows.
    """
    if backend.name == "triton" and (chance_alike or not _is_fastest_in_pytorch(inputs)):
        return _attend_by_kernel(inputs, entropy_rows)
    out = attention(inputs)
    if not entropy_rows:
        return out, None
    if backend.name == "torch":
        return out, attention_entropy(inputs, entropy_rows)
    # The kernel's own output would differ in rounding, and watching a prompt must not change its picture. It need not
    # see the rows behind the last watched one.
    return out, _attend_by_kernel(inputs.first_rows(max(entropy_rows) + 1), entropy_rows)[1]


def _attend_by_kernel(inputs: AttentionInputs, entropy_rows: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """By the Triton kernel, in one launch: one for each kind of row takes longer."""
    from .launch import flash_attention  # noqa: PLC0415 - imports Triton

    # Conditional rows come first, so those behind the last watched one are mostly half of all.
    watched = max(entropy_rows, default=-1) + 1
    out, entropy = flash_attention(inputs, with_entropy=watched > 0, watched_rows=watched)
    return out, None if entropy is None else inputs.layout.of_rows(entropy, entropy_rows)


def _is_fastest_in_pytorch(inputs: AttentionInputs) -> bool:
    """Whether PyTorch has one call for these rows, and our kernel does not take them anyway."""
    q = inputs.q
    return inputs.is_uniform and not takes_rows_alike(capability_of(q.device), q.shape[2], q.dtype)
