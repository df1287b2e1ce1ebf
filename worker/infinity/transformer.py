"""The Infinity transformer: text conditioning, blocks over a cache of earlier scales, and the bit head.

Parameter names are those of the official checkpoints, with the blocks numbered `blocks.<layer>`.
"""

import math
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from toprovar_batch.kernels.layout import DeviceBlocks, KeyLengths, PackedRows, TokenLayout
from toprovar_batch.kernels.ops import (
    AttentionInputs,
    Backend,
    Modulation,
    attend,
    bit_logits,
    linear_gelu,
)

from .config import MAX_LEVELS, MAX_TEXT_TOKENS, TransformerArchitecture
from .initialize import empty_embedding
from .memory import SelfAttentionMemory
from .residual import Residual
from .rope import RotationTables
from .row_linear import RowLinear, pad_rows
from .text_context import BlockConstants, BlockContext, TextContext
from .text_pool import SosProjection, TextNorm

_EPS = 1e-6
_MAX_LOG_Q_SCALE = math.log(100)


class HeadModulation(nn.Module):
    """Scale and shift of the head's input, under the official name `head_nm.ada_lin`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))


class SelfAttention(nn.Module):
    """Self-attention over the tokens of this scale and all earlier ones."""

    def __init__(self, sizes: TransformerArchitecture) -> None:
        super().__init__()
        self.num_heads = sizes.num_heads
        self.scale_mul_1H11 = nn.Parameter(torch.empty(1, sizes.num_heads, 1, 1))
        self.q_bias = nn.Parameter(torch.empty(sizes.width))
        self.v_bias = nn.Parameter(torch.empty(sizes.width))
        self.mat_qkv = RowLinear(sizes.width, 3 * sizes.width, bias=False)
        self.proj = RowLinear(sizes.width, sizes.width)

    def q_scale(self) -> Tensor:
        """[H] float32: the factor on the unit queries."""
        return self.scale_mul_1H11.float().flatten().clamp_max(_MAX_LOG_Q_SCALE).exp()

    def qkv_bias(self) -> Tensor:
        """[3C]: keys have none."""
        return torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))


class CrossAttention(nn.Module):
    """Attention over a prompt's own text tokens; keys have no bias."""

    def __init__(self, sizes: TransformerArchitecture) -> None:
        super().__init__()
        self.num_heads = sizes.num_heads
        self.mat_q = RowLinear(sizes.width, sizes.width)
        self.mat_kv = nn.Linear(sizes.width, 2 * sizes.width, bias=False)
        self.v_bias = nn.Parameter(torch.empty(sizes.width))
        self.proj = RowLinear(sizes.width, sizes.width)

    def kv_bias(self) -> Tensor:
        """[2C]: keys have none."""
        return torch.cat((torch.zeros_like(self.v_bias), self.v_bias))

    def keys_values(self, text: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """[R, N, C] padded text to keys and values [R, H, N, D], with the bias of `kv_bias`."""
        keys, values = linear(text, self.mat_kv.weight, bias).unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        return keys.transpose(1, 2).contiguous(), values.transpose(1, 2).contiguous()

    def forward(
        self,
        x: Tensor,
        layout: PackedRows,
        keys: Tensor,
        values: Tensor,
        lengths: KeyLengths | DeviceBlocks,
        backend: Backend,
    ) -> Tensor:
        """[T, C] to [T, C], over text keys and values [R, H, N, D]."""
        q = self.mat_q(x).unflatten(-1, (self.num_heads, -1))
        scale = q.shape[-1] ** -0.5
        inputs = AttentionInputs(q, keys, values, layout, lengths, scale)
        out, _ = attend(inputs, entropy_rows=(), chance_alike=True, backend=backend)
        return self.proj(out.flatten(1))


class FeedForward(nn.Module):
    """Linear, GELU (tanh form), Linear."""

    def __init__(self, sizes: TransformerArchitecture) -> None:
        super().__init__()
        self.fc1 = RowLinear(sizes.width, sizes.mlp_width)
        self.fc2 = RowLinear(sizes.mlp_width, sizes.width)

    def forward(self, x: Tensor, backend: Backend, out: Tensor | None = None) -> Tensor:
        """[T, C] to [T, C], into `out` where it is given."""
        hidden = linear_gelu(self.fc1, pad_rows(x, self.fc1.least_rows), backend=backend)[: len(x)]
        return self.fc2(hidden) if out is None else self.fc2.into(hidden, out)


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward, the outer two modulated by the text (AdaLN)."""

    def __init__(self, sizes: TransformerArchitecture) -> None:
        super().__init__()
        self.ada_gss = nn.Parameter(torch.empty(1, 1, 6, sizes.width))
        self.sa = SelfAttention(sizes)
        self.ca = CrossAttention(sizes)
        self.ca_norm = nn.LayerNorm(sizes.width, eps=_EPS)
        self.ffn = FeedForward(sizes)
        self._constants: BlockConstants | None = None

    def constants(self) -> BlockConstants:
        """What follows from the weights as they are, or as they were when they were frozen."""
        if self._constants is not None:
            return self._constants
        return BlockConstants(self.sa.qkv_bias(), self.sa.q_scale(), self.ca.kv_bias())

    def freeze(self) -> None:
        """Make the constants once and for all: neither weights nor their device may change from here on."""
        self._constants = None
        self._constants = self.constants()

    def context(self, shared_adaln: Tensor, text: Tensor) -> BlockContext:
        """Precompute from the shared modulation ([R, 6, C] float32) and the projected text ([R, N, C])."""
        adaln = (shared_adaln + self.ada_gss[0]).transpose(0, 1).clone()  # [6, R, C]
        adaln[2:4] += 1
        constants = self.constants()
        keys, values = self.ca.keys_values(text, constants.text_kv_bias)
        return BlockContext(adaln, keys, values, constants.qkv_bias.to(text.dtype), constants.q_scale)

    def forward(
        self,
        x: Tensor,
        context: BlockContext,
        text_lengths: KeyLengths,
        layout: TokenLayout,
        rotation: Tensor,
        memory: SelfAttentionMemory,
        layer: int,
        *,
        entropy_rows: Sequence[int],
    ) -> tuple[Tensor, Tensor | None]:
        """Run the block on packed tokens; `advance` has the arguments.

        Returns:
            The new hidden state [T, C] float32, and the entropy as of `advance`.
        """
        residual = Residual(x, layout, memory.backend)
        entropy = self.advance(
            residual, context, text_lengths, rotation, memory, layer, entropy_rows=entropy_rows
        )
        return residual.settled(), entropy

    def advance(
        self,
        residual: Residual,
        context: BlockContext,
        text_lengths: KeyLengths | DeviceBlocks,
        rotation: Tensor,
        memory: SelfAttentionMemory,
        layer: int,
        *,
        entropy_rows: Sequence[int],
        out: Tensor | None = None,
    ) -> Tensor | None:
        """Run the block on packed tokens, and leave its last addition to whatever comes next.

        Args:
            residual: the hidden state [T, C], which goes on.
            context: of this block.
            text_lengths: text tokens of each row.
            rotation: [N, D / 2] complex64 of the scale.
            memory: attends over the scale's own and all earlier tokens.
            layer: index of this block in the memory.
            entropy_rows: also measure the entropy of the self-attention of these rows.
            out: [T, C] in the compute dtype, takes the last addition; without gradients.

        Returns:
            The entropy of the tokens of `entropy_rows`, float32 in nats (mean over heads), or None.
        """
        gamma1, gamma2, scale1, scale2, shift1, shift2 = context.adaln
        dtype = self.sa.mat_qkv.weight.dtype
        attended, entropy = memory.attend(
            layer,
            self._qkv(residual.normed(Modulation(scale1, shift1), dtype), context.qkv_bias),
            context.q_scale,
            rotation,
            residual.layout,
            entropy_rows=entropy_rows,
        )
        residual.add(self.sa.proj(attended.flatten(1)), gamma1)
        # What a step has read has no name in the next one, whose memory it is.
        del attended
        text = (context.text_keys, context.text_values, text_lengths, memory.backend)
        across = Modulation(self.ca_norm.weight, self.ca_norm.bias)
        residual.add(self.ca(residual.normed(across, dtype), residual.layout, *text))
        residual.add(
            self.ffn(residual.normed(Modulation(scale2, shift2), dtype), memory.backend, out), gamma2
        )
        return entropy

    def _qkv(self, normed: Tensor, bias: Tensor) -> Tensor:
        """[T, C] to [T, 3, H, D]."""
        return self.sa.mat_qkv.with_bias(normed, bias).unflatten(-1, (3, self.sa.num_heads, -1))


class Infinity(nn.Module):
    """The transformer that predicts the bits of a scale from the text and the earlier scales.

    The products of the blocks, the text projection and the word embedding run in the compute dtype. The hidden state
    between them, the norms, the small modules that condition the blocks and the head stay in float32.
    """

    def __init__(self, sizes: TransformerArchitecture) -> None:
        super().__init__()
        self.sizes = sizes
        self.rotations = RotationTables(sizes.head_dim)
        width = sizes.width
        self.cfg_uncond = nn.Parameter(torch.empty(MAX_TEXT_TOKENS, sizes.text_width))
        self.pos_start = nn.Parameter(torch.empty(1, 1, width))
        self.text_norm = TextNorm(sizes.text_width)
        self.text_proj_for_sos = SosProjection(sizes)
        self.text_proj_for_ca = nn.Sequential(
            nn.Linear(sizes.text_width, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
        )
        self.lvl_embed = empty_embedding(MAX_LEVELS, width)
        self.word_embed = RowLinear(sizes.bits_per_token, width)
        self.shared_ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.depth))
        self.head_nm = HeadModulation(width)
        self.head = nn.Linear(width, 2 * sizes.bits_per_token)

    @staticmethod
    def computes_in_low_precision(name: str) -> bool:
        """Whether a parameter takes the compute dtype; the others stay in float32."""
        if name.startswith("blocks."):
            return not (name.endswith(("ada_gss", "scale_mul_1H11")) or ".ca_norm." in name)
        return name.startswith(("text_proj_for_ca.", "word_embed."))

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype."""
        return self.word_embed.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.word_embed.weight.device

    @torch.no_grad()
    def freeze(self) -> None:
        """Make once what follows from the weights alone, which must not change from here on."""
        for block in self.blocks:
            cast("Block", block).freeze()

    @property
    def constants(self) -> tuple[BlockConstants, ...]:
        """What follows from the weights alone, of every block."""
        return tuple(cast("Block", block).constants() for block in self.blocks)

    def encode_text(self, features: list[Tensor]) -> TextContext:
        """Precompute all that depends on the text alone.

        Args:
            features: one [n_r, Ct5] float32 a row, the prompt's own tokens without padding.

        Returns:
            The context of R = len(features) rows.
        """
        lengths = KeyLengths(tuple(len(row) for row in features), self.device)
        return self.encode_padded(nn.utils.rnn.pad_sequence(features, batch_first=True), lengths)

    def encode_padded(self, features: Tensor, lengths: KeyLengths, mask: Tensor | None = None) -> TextContext:
        """Precompute from features [R, N, Ct5] float32, of which each row's first are its own.

        Args:
            features: padded.
            lengths: of the rows' own.
            mask: [R, 1, 1, N] boolean of the same; None: that of `lengths`.
        """
        cond, contexts = self.text_contexts(features, lengths.mask if mask is None else mask)
        return TextContext(cond, self.head_nm.ada_lin(cond), lengths, tuple(contexts))

    def text_contexts(self, features: Tensor, mask: Tensor | None) -> tuple[Tensor, Iterator[BlockContext]]:
        """The pooled text [R, C] float32, and the context of every block, made when it is asked for.

        Args:
            features: [R, N, Ct5] float32, padded.
            mask: as of `KeyLengths`.
        """
        normed = self.text_norm(features)
        cond = self.text_proj_for_sos.ca(normed, mask)
        text = self.text_proj_for_ca(normed.to(self.dtype))
        shared = self.shared_ada_lin(cond).unflatten(-1, (6, -1))
        return cond, (cast("Block", block).context(shared, text) for block in self.blocks)

    def unconditional_features(self, length: int) -> Tensor:
        """[length, Ct5] learned features that stand in for a prompt of that many tokens."""
        return self.cfg_uncond[:length]

    def embed_first(self, text: TextContext) -> Tensor:
        """[R, C] float32: the one token of scale 0 of every row."""
        return text.cond + self.pos_start[0] + self.lvl_embed.weight[0]

    def embed(self, tokens: Tensor, scale_index: int) -> Tensor:
        """[..., D] resized codes to [..., C] float32 tokens of a scale after the first."""
        embedded = self.word_embed(tokens.to(self.dtype).flatten(0, -2)).unflatten(0, tokens.shape[:-1])
        return embedded + self.lvl_embed.weight[scale_index]

    def logits(self, x: Tensor, modulation: Tensor, layout: TokenLayout, backend: Backend) -> Tensor:
        """[T, C] hidden states to [T, 2D] float32 bit logits; `modulation` is [R, 2C], of the rows of `layout`."""
        return bit_logits(x, modulation, self.head.weight, self.head.bias, layout, backend=backend)
