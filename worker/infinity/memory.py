"""What a block asks of the keys and values that self-attention goes over."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from toprovar_batch.kernels.layout import PackedRows
from toprovar_batch.kernels.ops import Backend


class SelfAttentionMemory(Protocol):
    """What self-attention attends over: a cache that grows scale by scale, or all scales at once in training.

    Attributes:
        backend: of the attention over it, and of the one over the text.
    """

    backend: Backend

    def attend(
        self,
        layer: int,
        qkv: Tensor,
        q_scale: Tensor,
        rotation: Tensor,
        layout: PackedRows,
        *,
        entropy_rows: Sequence[int],
    ) -> tuple[Tensor, Tensor | None]:
        """Normalise and rotate the q and k of packed qkv [T, 3, H, D], and attend.

        Args:
            layer: index of the block.
            qkv: [T, 3, H, D] packed by `layout`.
            q_scale: [H] float32, the factor on the unit queries.
            rotation: [N, D / 2] complex64 of the scale.
            layout: rows of the packed tokens.
            entropy_rows: also measure the entropy of the attention of these rows.

        Returns:
            The attended values [T, H, D], and the entropy of the tokens of `entropy_rows`, or None.
        """
