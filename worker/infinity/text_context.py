"""What the text and the weights give to every scale of a batch, made before the first."""

from dataclasses import dataclass, replace

from torch import Tensor

from toprovar_batch.kernels.layout import KeyLengths


@dataclass(frozen=True)
class BlockConstants:
    """What a block makes of its own weights alone.

    Attributes:
        qkv_bias: [3C].
        q_scale: [H] float32.
        text_kv_bias: [2C].
    """

    qkv_bias: Tensor
    q_scale: Tensor
    text_kv_bias: Tensor


@dataclass(frozen=True)
class BlockContext:
    """What a block needs of the text and of its own weights, the same at every scale.

    Attributes:
        adaln: [6, R, C] float32: gamma1, gamma2, 1 + scale1, 1 + scale2, shift1, shift2.
        text_keys, text_values: [R, H, N, D].
        qkv_bias: [3C].
        q_scale: [H] float32.
    """

    adaln: Tensor
    text_keys: Tensor
    text_values: Tensor
    qkv_bias: Tensor
    q_scale: Tensor

    def first_rows(self, rows: int, longest: int) -> "BlockContext":
        """A view of the first `rows` rows and of as many text tokens as the longest of them has."""
        keys, values = (tensor[:rows, :, :longest] for tensor in (self.text_keys, self.text_values))
        return replace(self, adaln=self.adaln[:, :rows], text_keys=keys, text_values=values)


@dataclass(frozen=True)
class TextContext:
    """The text of R rows, as the transformer uses it at every scale.

    Attributes:
        cond: [R, C] float32, the pooled text, without `pos_start`.
        head_modulation: [R, 2C] float32, scale and shift of the head's input.
        text_lengths: text tokens of each row.
        blocks: one context per block.
    """

    cond: Tensor
    head_modulation: Tensor
    text_lengths: KeyLengths
    blocks: tuple[BlockContext, ...]

    def first_rows(self, rows: int) -> "TextContext":
        """A view of the first `rows` rows."""
        lengths = self.text_lengths.first_rows(rows)
        longest = max(lengths.lengths)
        blocks = tuple(block.first_rows(rows, longest) for block in self.blocks)
        return TextContext(self.cond[:rows], self.head_modulation[:rows], lengths, blocks)
