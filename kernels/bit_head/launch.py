"""Host side of the head's kernel."""

import torch
from torch import Tensor

from toprovar_batch.kernels.layout import TokenLayout

from .naive import EPS
from .triton_kernel import bit_logits_kernel

# Nothing here may follow the number of tokens: a token's sums must not depend on its batch.
_BLOCK_T, _BLOCK_N, _BLOCK_C, _BLOCK_S = 32, 64, 32, 128


def bit_logits(x: Tensor, modulation: Tensor, weight: Tensor, bias: Tensor, layout: TokenLayout) -> Tensor:
    """`naive.bit_logits` in one launch; a token's logits are the same, bit for bit, in any batch.

    Raises:
        ValueError: inputs that the kernel cannot take; says which.
    """
    tokens, width = x.shape
    outputs = len(weight)
    if weight.shape[1] != width or modulation.shape != (layout.num_rows, 2 * width):
        raise ValueError(
            f"weight {tuple(weight.shape)} and modulation {tuple(modulation.shape)} do not fit states of {width} "
            f"channels in {layout.num_rows} rows"
        )
    if tokens != layout.num_tokens:
        raise ValueError(f"{tokens} states do not fit {layout.num_tokens} tokens of the rows")
    if any(each.dtype != torch.float32 for each in (modulation, weight, bias)):
        raise ValueError("modulation, weight and bias of the head must be float32")
    out = torch.empty(tokens, outputs, dtype=torch.float32, device=x.device)
    if not tokens:
        return out
    x, modulation = (each if each.stride(1) == 1 else each.contiguous() for each in (x, modulation))
    length = layout.uniform_length
    bit_logits_kernel[-(-tokens // _BLOCK_T), -(-outputs // _BLOCK_N)](
        x, modulation, weight.contiguous(), bias, bias if length is not None else layout.row_ids, out,
        tokens, length or 1, x.stride(0), modulation.stride(0), EPS,
        WIDTH=width, OUTPUTS=outputs, BLOCK_T=_BLOCK_T, BLOCK_N=_BLOCK_N, BLOCK_C=_BLOCK_C, BLOCK_S=_BLOCK_S,
        RAGGED=length is None, PRODUCTS="tf32x3", num_warps=4, num_stages=2,
    )  # fmt: skip
    return out
