"""The encoder of T5, mT5 and UMT5 in plain PyTorch (Raffel et al. 2020, arXiv 1910.10683; Chung et al. 2023).

Its operations are those of transformers, in the same order, so its features are the same to the bit. It stands here
since importing a model of transformers takes longer than loading the weights of any of ours. Parameters have the names of
the official files.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from .config import T5Architecture
from .initialize import empty_embedding

_KEPT_IN_FLOAT32 = ".wo."  # of an encoder in float16, whose sums here are too large for it


def _gelu_new(x: Tensor) -> Tensor:
    """GELU by tanh, as T5 1.1 was trained with it."""
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


_ACTIVATIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_new": _gelu_new,
    "silu": functional.silu,
}


@dataclass(frozen=True, slots=True)
class T5Settings:
    """What a config.json says of an encoder; the defaults are those of transformers.

    Attributes:
        sizes: widths and depth.
        vocab_size: rows of the embedding.
        num_buckets: of relative positions.
        max_distance: from which on all distances share a bucket.
        epsilon: of the norms.
        activation: its name.
        is_gated: whether the feed-forward layers are.
        bias_in_every_layer: UMT5 has a position bias of its own in each layer, the others one for all.
    """

    sizes: T5Architecture
    vocab_size: int = 32128
    num_buckets: int = 32
    max_distance: int = 128
    epsilon: float = 1e-6
    activation: str = "gelu_new"
    is_gated: bool = True
    bias_in_every_layer: bool = False

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "T5Settings":
        """Read a config.json.

        Raises:
            ValueError: an activation that is not known here, or a value that is no number.
        """
        projection = str(config.get("feed_forward_proj", "relu"))
        gate, _, name = projection.rpartition("-")
        activation = "gelu_new" if projection == "gated-gelu" else name
        if gate not in {"", "gated"} or activation not in _ACTIVATIONS:
            raise ValueError(f"feed_forward_proj: {projection!r} is not known")

        def number(key: str, default: int) -> int:
            return int(config.get(key, default))

        return cls(
            T5Architecture(
                d_model=number("d_model", 512),
                d_kv=number("d_kv", 64),
                d_ff=number("d_ff", 2048),
                num_layers=number("num_layers", 6),
                num_heads=number("num_heads", 8),
            ),
            vocab_size=number("vocab_size", 32128),
            num_buckets=number("relative_attention_num_buckets", 32),
            max_distance=number("relative_attention_max_distance", 128),
            epsilon=float(config.get("layer_norm_epsilon", 1e-6)),
            activation=activation,
            is_gated=gate == "gated",
            bias_in_every_layer=config.get("model_type") == "umt5",
        )


class T5Norm(nn.Module):
    """Root mean square norm, measured in float32."""

    def __init__(self, settings: T5Settings) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(settings.sizes.d_model))
        self._epsilon = settings.epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        """[n, N, C] to the same shape, in the dtype of the weights where that is a small one."""
        variance = hidden.to(torch.float32).pow(2).mean(-1, keepdim=True)
        hidden = hidden * torch.rsqrt(variance + self._epsilon)
        if self.weight.dtype in {torch.float16, torch.bfloat16}:
            hidden = hidden.to(self.weight.dtype)
        return self.weight * hidden


class T5Attention(nn.Module):
    """Attention over all tokens with a bias for relative positions, and scores that are not scaled."""

    def __init__(self, settings: T5Settings, *, has_bias: bool) -> None:
        super().__init__()
        sizes = settings.sizes
        inner = sizes.num_heads * sizes.d_kv
        self._settings = settings
        self.q, self.k, self.v = (nn.Linear(sizes.d_model, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, sizes.d_model, bias=False)
        if has_bias:
            self.relative_attention_bias = empty_embedding(settings.num_buckets, sizes.num_heads)

    def position_bias(self, length: int, mask: Tensor | None) -> Tensor:
        """What is added to the scores: [1 or n, H, N, N]; the lowest number where `mask` [n, 1, 1, N] is False."""
        place = torch.arange(length, device=self.q.weight.device)
        bias = self.relative_attention_bias(self._buckets(place[None, :] - place[:, None]))  # [N, N, H]
        bias = bias.permute([2, 0, 1]).unsqueeze(0)
        if mask is not None:
            # Filled in, since a number in the place of a tensor would be copied to the device.
            bias = bias.masked_fill(~mask, torch.finfo(bias.dtype).min)
        return bias.contiguous()

    def _buckets(self, distance: Tensor) -> Tensor:
        """Bucket of each signed distance: small ones have their own, larger ones share them by their logarithm."""
        half = self._settings.num_buckets // 2
        exact = half // 2
        sign = (distance > 0).to(torch.long) * half
        distance = distance.abs()
        steps = math.log(self._settings.max_distance / exact)
        large = exact + (torch.log(distance.float() / exact) / steps * (half - exact)).to(torch.long)
        large = torch.min(large, torch.full_like(large, half - 1))
        return sign + torch.where(distance < exact, distance, large)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """[n, N, C] to the same shape; `bias` from `position_bias`."""
        shape = (*hidden.shape[:-1], -1, self._settings.sizes.d_kv)
        q, k, v = (
            layer(hidden).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )  # [n, H, N, D]
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        return self.o(out.transpose(1, 2).contiguous().reshape(*hidden.shape[:-1], -1))


class T5SelfAttention(nn.Module):
    """The first half of a block."""

    def __init__(self, settings: T5Settings, *, has_bias: bool) -> None:
        super().__init__()
        self.SelfAttention = T5Attention(settings, has_bias=has_bias)
        self.layer_norm = T5Norm(settings)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """[n, N, C] to the same shape."""
        return hidden + self.SelfAttention(self.layer_norm(hidden), bias)


class T5Dense(nn.Module):
    """A feed-forward layer, gated or not."""

    def __init__(self, settings: T5Settings) -> None:
        super().__init__()
        sizes, self._settings = settings.sizes, settings
        if settings.is_gated:
            self.wi_0, self.wi_1 = (nn.Linear(sizes.d_model, sizes.d_ff, bias=False) for _ in range(2))
        else:
            self.wi = nn.Linear(sizes.d_model, sizes.d_ff, bias=False)
        self.wo = nn.Linear(sizes.d_ff, sizes.d_model, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """[n, N, C] to the same shape."""
        activate = _ACTIVATIONS[self._settings.activation]
        if self._settings.is_gated:
            hidden = activate(self.wi_0(hidden)) * self.wi_1(hidden)
        else:
            hidden = activate(self.wi(hidden))
        return self.wo(hidden.to(self.wo.weight.dtype))


class T5FeedForward(nn.Module):
    """The second half of a block."""

    def __init__(self, settings: T5Settings) -> None:
        super().__init__()
        self.DenseReluDense = T5Dense(settings)
        self.layer_norm = T5Norm(settings)

    def forward(self, hidden: Tensor) -> Tensor:
        """[n, N, C] to the same shape."""
        return hidden + self.DenseReluDense(self.layer_norm(hidden))


class T5Block(nn.Module):
    """Attention and feed-forward layer."""

    def __init__(self, settings: T5Settings, *, has_bias: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList([T5SelfAttention(settings, has_bias=has_bias), T5FeedForward(settings)])

    def position_bias(self, length: int, mask: Tensor | None) -> Tensor:
        """See `T5Attention.position_bias`."""
        first = self.layer[0]
        assert isinstance(first, T5SelfAttention)
        return first.SelfAttention.position_bias(length, mask)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """[n, N, C] to the same shape."""
        return _clamped(self.layer[1](_clamped(self.layer[0](hidden, bias))))


def _clamped(hidden: Tensor) -> Tensor:
    """Keep the sums of an encoder in float16 finite."""
    if hidden.dtype != torch.float16:
        return hidden
    most = torch.finfo(torch.float16).max
    limit = torch.where(hidden.isinf().any(), most - 1000, most)
    return torch.clamp(hidden, min=-limit, max=limit)


class T5Stack(nn.Module):
    """Token ids to features."""

    def __init__(self, settings: T5Settings) -> None:
        super().__init__()
        self._own = settings.bias_in_every_layer
        self.embed_tokens = empty_embedding(settings.vocab_size, settings.sizes.d_model)
        self.block = nn.ModuleList(
            T5Block(settings, has_bias=self._own or layer == 0) for layer in range(settings.sizes.num_layers)
        )
        self.final_layer_norm = T5Norm(settings)

    def forward(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """[n, N] token ids to [n, N, C] features."""
        hidden, bias = self.embed_tokens(ids), None
        for block in self.block:
            assert isinstance(block, T5Block)
            if bias is None or self._own:
                bias = block.position_bias(ids.shape[1], mask)
            hidden = block(hidden, bias)
        return self.final_layer_norm(hidden)


class T5Encoder(nn.Module):
    """The whole encoder, under the name that it has in the official files."""

    def __init__(self, settings: T5Settings) -> None:
        super().__init__()
        self.settings = settings
        self.encoder = T5Stack(settings)

    def forward(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Encode.

        Args:
            ids: [n, N] int64.
            mask: [n, 1, 1, N], False where a token is padding; None where none is.

        Returns:
            [n, N, C] features; those of padding mean nothing.
        """
        return self.encoder(ids, mask)


def t5_dtype(dtype: torch.dtype) -> Callable[[str], torch.dtype]:
    """The dtype of each parameter of an encoder that computes in `dtype`."""
    low = torch.float32 if dtype == torch.float16 else dtype
    return lambda name: low if _KEPT_IN_FLOAT32 in name else dtype
