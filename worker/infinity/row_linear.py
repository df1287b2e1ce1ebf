"""Linear layers whose result for a row does not depend on how many rows there are."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad


def pad_rows(x: Tensor, least: int) -> Tensor:
    """[T, C] with rows of zeros behind it, where it has fewer than `least`."""
    return x if len(x) >= least else pad(x, (0, 0, 0, least - len(x)))


class RowLinear(nn.Linear):
    """A linear layer that is never run on fewer than `least_rows` rows.

    A GPU's libraries split a product of few rows otherwise than one of many, and so round it otherwise.

    Attributes:
        least_rows: 1 unless `worker/row_independence.py` has found that the device needs more.
    """

    least_rows = 1

    def forward(self, x: Tensor) -> Tensor:
        """[T, C_in] to [T, C_out]."""
        return self.with_bias(x, self.bias)

    def with_bias(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The same with another bias, [C_out]."""
        return linear(pad_rows(x, self.least_rows), self.weight, bias)[: len(x)]

    def into(self, x: Tensor, out: Tensor) -> Tensor:
        """The same as `forward`, into `out`; without gradients."""
        if len(x) < self.least_rows:
            return out.copy_(self(x))
        return torch.addmm(self.bias, x, self.weight.t(), out=out)
