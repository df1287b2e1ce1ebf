"""Two-dimensional rotary position embedding."""

import torch
from torch import Tensor

_BASE = 10000.0


def rope_2d(scale: tuple[int, int], largest: tuple[int, int], head_dim: int, device: torch.device) -> Tensor:
    """Turns of every token of a map, as unit complex numbers.

    The first head_dim / 4 pairs turn with the row, the others with the column. A map's rows are spread over
    those of the largest map of the same shape: row r of h has position round(r * (h_max / h)), the product
    in float32, halves to even.

    Args:
        scale: (height, width) of the token map.
        largest: (height, width) of the last map of the 1M schedule of the same ratio.
        head_dim: D, divisible by 4.
        device: of the result.

    Returns:
        [height * width, head_dim / 2] complex64, tokens row-major.
    """
    half = head_dim // 2
    exponents = torch.arange(0, half, 2, dtype=torch.float32, device=device) / half
    inverse_frequencies = 1.0 / _BASE**exponents  # [D / 4]
    rows, columns = (
        torch.round(torch.arange(size, device=device) * (most / size))
        for size, most in zip(scale, largest, strict=True)
    )
    by_row = torch.outer(rows, inverse_frequencies)[:, None].expand(-1, scale[1], -1)
    by_column = torch.outer(columns, inverse_frequencies)[None].expand(scale[0], -1, -1)
    angles = torch.cat((by_row, by_column), dim=-1).flatten(0, 1)  # [h * w, D / 2]
    return torch.polar(torch.ones_like(angles), angles)
