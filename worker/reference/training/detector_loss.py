"""What the detector should say about rendered scenes, and how wrong it is."""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from toprovar_batch.worker.reference.scoring.detector import STRIDE, Maps

_MIN_VISIBLE: Final = 0.15
"""Objects of which less shows are neither asked for nor held against the detector."""
_IGNORED_HEAT: Final = 0.2
_SPREAD: Final = 0.11
"""Standard deviation of a target's bump in parts of the box's sides."""
_MIN_SPREAD: Final = 0.8
_NEIGHBOUR_WEIGHT: Final = 0.3
"""Weight of the 8 cells around the middle in all losses but the heat's: a peak may be one cell off."""
_BOX_WEIGHT: Final = 0.5


@dataclass(frozen=True)
class Labels:
    """Truth of B pictures with N object slots each.

    `shapes` and `colours` int64 [B, N]: indices into the vocabulary, -1 for empty slots. `boxes` float32 [B, N, 4]:
    half-open pixels (x0, y0, x1, y1). `visible` float32 [B, N]: the part of each object that shows, in [0, 1].
    """

    shapes: Tensor
    colours: Tensor
    boxes: Tensor
    visible: Tensor

    def __getitem__(self, rows: Tensor | slice) -> "Labels":
        return Labels(self.shapes[rows], self.colours[rows], self.boxes[rows], self.visible[rows])

    def mirrored(self, rows: Tensor, width: int) -> "Labels":
        """The labels with pictures flipped left to right where `rows` (bool [B]) says so."""
        x0, y0, x1, y1 = self.boxes.unbind(-1)
        flipped = torch.stack((width - x1, y0, width - x0, y1), -1)
        boxes = torch.where(rows[:, None, None], flipped, self.boxes)
        return Labels(self.shapes, self.colours, boxes, self.visible)


@dataclass(frozen=True)
class Targets:
    """Labels on the grid of h x w cells.

    `heat` float [B, 1, h, w] in [0, 1], 1 at the middles. `counts` float [B, 1, h, w]: 0 where nothing is held
    against the detector. `cells` int64 [B, N, 9]: flat cells around every middle. `weights` float [B, N, 9]. `box`
    float [B, N, 9, 4]. `shapes` and `colours` int64 [B, N].
    """

    heat: Tensor
    counts: Tensor
    cells: Tensor
    weights: Tensor
    box: Tensor
    shapes: Tensor
    colours: Tensor


def detector_targets(labels: Labels, size: tuple[int, int]) -> Targets:
    """Targets for pictures of `size` (height, width) in pixels, multiples of the stride."""
    rows, columns = size[0] // STRIDE, size[1] // STRIDE
    device = labels.boxes.device
    x0, y0, x1, y1 = (labels.boxes / STRIDE).unbind(-1)  # [B, N]
    width, height = (x1 - x0).clamp_min(0.25), (y1 - y0).clamp_min(0.25)
    x, y = 0.5 * (x0 + x1), 0.5 * (y0 + y1)
    column, row = x.floor().clamp(0, columns - 1), y.floor().clamp(0, rows - 1)
    there = (labels.shapes >= 0) & (x1 > x0)
    wanted = there & (labels.visible >= _MIN_VISIBLE)

    across = (torch.arange(columns, device=device) - column[..., None]) / (_SPREAD * width).clamp_min(
        _MIN_SPREAD
    )[..., None]
    down = (torch.arange(rows, device=device) - row[..., None]) / (_SPREAD * height).clamp_min(_MIN_SPREAD)[
        ..., None
    ]
    bumps = torch.exp(-0.5 * (across.square()[:, :, None, :] + down.square()[:, :, :, None]))  # [B, N, h, w]
    heat = (bumps * wanted[:, :, None, None]).amax(1, keepdim=True)
    blurred = (bumps * (there & ~wanted)[:, :, None, None]).amax(1, keepdim=True) > _IGNORED_HEAT

    steps = torch.tensor((-1, 0, 1), device=device)
    near_x = column[..., None] + steps.repeat(3)  # [B, N, 9]
    near_y = row[..., None] + steps.repeat_interleave(3)
    inside = (near_x >= 0) & (near_x < columns) & (near_y >= 0) & (near_y < rows) & wanted[..., None]
    weights = torch.full((9,), _NEIGHBOUR_WEIGHT, device=device)
    weights[4] = 1.0
    sizes = torch.stack((width.log(), height.log()), -1)[:, :, None].expand(-1, -1, 9, -1)
    offsets = torch.stack((x[..., None] - near_x - 0.5, y[..., None] - near_y - 0.5), -1)
    cells = (near_y.clamp(0, rows - 1) * columns + near_x.clamp(0, columns - 1)).long()
    return Targets(
        heat,
        (~blurred).float(),
        cells,
        weights * inside,
        torch.cat((offsets, sizes), -1),
        labels.shapes.clamp_min(0),
        labels.colours.clamp_min(0),
    )


def detector_loss(maps: Maps, targets: Targets) -> Tensor:
    """Penalty-reduced focal loss of the heat, L1 of the boxes, cross entropy of shapes and colours, for an object."""
    probability = maps.heat.sigmoid()
    hit = targets.heat >= 1.0
    number = hit.sum().clamp_min(1)
    found = functional.logsigmoid(maps.heat) * (1.0 - probability).square() * hit
    missed = functional.logsigmoid(-maps.heat) * probability.square() * (1.0 - targets.heat) ** 4 * ~hit
    heat_loss = -((found + missed) * targets.counts).sum() / number

    def at_cells(values: Tensor) -> Tensor:  # [B, C, h, w] -> [B, N, 9, C]
        flat = targets.cells.flatten(1)[:, None].expand(-1, values.shape[1], -1)
        picked = values.flatten(2).gather(2, flat)
        return picked.transpose(1, 2).unflatten(1, targets.cells.shape[1:])

    total = targets.weights.sum().clamp_min(1.0)
    box_loss = ((at_cells(maps.box) - targets.box).abs().sum(-1) * targets.weights).sum() / total

    def entropy(logits: Tensor, wanted: Tensor) -> Tensor:
        index = wanted[..., None, None].expand(-1, -1, 9, 1)
        odds = at_cells(logits).log_softmax(-1).gather(-1, index)[..., 0]  # [B, N, 9]
        return -(odds * targets.weights).sum() / total

    names = entropy(maps.shape, targets.shapes) + entropy(maps.colour, targets.colours)
    return heat_loss + _BOX_WEIGHT * box_loss + names
