"""Host side of the kernel that draws bits."""

import torch
from torch import Tensor

from toprovar_batch.kernels.host_values import to_device
from toprovar_batch.kernels.layout import TokenLayout

from .naive import BitDraw, DrawnBits, certain_margin, check_rows
from .triton_kernel import draw_bits_kernel

_BITS_OF_PROGRAM = 1024


def draw_bits(
    logits: Tensor,
    layout: TokenLayout,
    seeds: Tensor,
    num_tokens: int,
    draw: BitDraw,
    *,
    with_guided: bool = False,
) -> DrawnBits:
    """`naive.draw_bits` in one launch; arguments, result and errors are the same."""
    check_rows(logits, layout, seeds, num_tokens)
    prompts, num_bits = len(seeds), logits.shape[-1] // 2
    own = layout.row_lengths[:prompts]
    is_guided = any(layout.row_lengths[prompts:])
    is_whole = all(length == num_tokens for length in own) and layout.token_indices is None
    is_ragged = not is_whole or (is_guided and not all(layout.row_lengths[prompts:]))
    # Of tokens that do not run, nothing is written.
    new = torch.empty if is_whole else torch.zeros
    bits = new(prompts, num_tokens, num_bits, dtype=torch.bool, device=logits.device)
    guided = None
    if with_guided:
        guided = new(prompts, num_tokens, 2 * num_bits, dtype=torch.float32, device=logits.device)
    finite = torch.ones(prompts, dtype=torch.bool, device=logits.device)
    groups = 1 << (-(-num_bits // 4) - 1).bit_length()
    block_t = max(1, _BITS_OF_PROGRAM // (4 * groups))
    blocks = -(-max(own, default=0) // block_t)
    if not blocks:
        return DrawnBits(bits, finite, guided)
    draw_bits_kernel[blocks, prompts](
        logits.contiguous(), _spans(layout, prompts) if is_ragged else seeds,
        seeds if layout.token_indices is None else layout.token_indices, seeds,
        bits.view(torch.uint8), finite.view(torch.uint8), logits if guided is None else guided,
        prompts, num_tokens, draw.scale_index,
        draw.cfg_scale, 1 - draw.cfg_scale, draw.temperature, certain_margin(draw.top_p),
        NUM_BITS=num_bits, GROUPS=groups, BLOCK_T=block_t, RAGGED=is_ragged,
        INDEXED=layout.token_indices is not None, GUIDED=is_guided, GREEDY=draw.greedy,
        WITH_GUIDED=with_guided, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return DrawnBits(bits, finite, guided)


def _spans(layout: TokenLayout, prompts: int) -> Tensor:
    """[3, P] int64: each prompt's first token, its tokens, and the first token of its twin or -1."""
    firsts = [part.start for part in layout.row_slices[:prompts]]
    twins = [part.start if part.stop > part.start else -1 for part in layout.row_slices[prompts:]]
    table = (*firsts, *layout.row_lengths[:prompts], *(twins or [-1] * prompts))
    return to_device(table, layout.device).view(3, prompts)
