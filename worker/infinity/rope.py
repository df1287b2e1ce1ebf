"""Two-dimensional rotary position embedding."""

import torch
from torch import Tensor

_BASE = 10000.0
_KEPT_TABLES = 64  # five schedules of 13 maps; 27 MB at 1M with heads of 128


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


class RotationTables:
    """Turns of the maps that a model generates, made once; a bounded number is kept, those used last."""

    def __init__(self, head_dim: int) -> None:
        """Start with none.

        Args:
            head_dim: D, divisible by 4.
        """
        self._head_dim = head_dim
        self._tables: dict[tuple[tuple[int, int], tuple[int, int], torch.device], Tensor] = {}

    def of(self, scale: tuple[int, int], largest: tuple[int, int], device: torch.device) -> Tensor:
        """`rope_2d` of a map; the same tensor every time, so it must not be changed."""
        key = scale, largest, device
        table = self._tables.pop(key, None)
        if table is None:
            with torch.inference_mode(False):  # it outlives the batch, whatever comes after
                table = rope_2d(scale, largest, self._head_dim, device)
        self._tables[key] = table  # behind those used less lately
        if len(self._tables) > _KEPT_TABLES:
            del self._tables[next(iter(self._tables))]
        return table
