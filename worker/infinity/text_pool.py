"""What pools a prompt's text features into the vector that conditions the transformer; under the official names."""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from .config import TransformerArchitecture

_EPS = 1e-6


class TextNorm(nn.Module):
    """RMSNorm with weight over the text features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, features: Tensor) -> Tensor:
        """[..., Ct5] to the same shape."""
        return nn.functional.rms_norm(features, features.shape[-1:], self.weight, _EPS)


class TextPool(nn.Module):
    """Attentive pooling of a prompt's features into one vector, by one learned query a head."""

    def __init__(self, sizes: TransformerArchitecture) -> None:
        super().__init__()
        self.num_heads = sizes.text_pool_heads
        head_dim = sizes.width // self.num_heads
        self.mat_q = nn.Parameter(torch.empty(1, self.num_heads, head_dim))
        self.mat_kv = nn.Linear(sizes.text_width, 2 * sizes.width, bias=False)
        self.v_bias = nn.Parameter(torch.empty(sizes.width))
        self.proj = nn.Linear(sizes.width, sizes.width)

    def forward(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """[R, N, Ct5] padded features to [R, C]; `mask` as of `KeyLengths`."""
        keys, values = self.mat_kv(features).unflatten(-1, (2, self.num_heads, -1)).unbind(2)  # [R, N, H, D]
        values = values + self.v_bias.unflatten(0, (self.num_heads, -1))
        queries = self.mat_q.expand(features.shape[0], -1, -1)[:, :, None]  # [R, H, 1, D]
        pooled = scaled_dot_product_attention(
            queries,
            keys.transpose(1, 2),
            values.transpose(1, 2),
            attn_mask=mask,
            scale=self.mat_q.shape[-1] ** -0.5,
        )
        return self.proj(pooled.flatten(1))


class SosProjection(nn.Module):
    """Holds the pooling under its official name, `text_proj_for_sos.ca`."""

    def __init__(self, sizes: TransformerArchitecture) -> None:
        super().__init__()
        self.ca = TextPool(sizes)
