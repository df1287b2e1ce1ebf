"""A small anchor-free detector of the scenes' shapes and colours: what reads generated pictures for the scores.

Every cell of an 8-pixel grid says how likely an object has its middle there, how large it is, and of what shape and
colour. It works on pictures whose shorter side is 512 pixels; others are resized first.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from toprovar_batch.worker.reference.scenes.vocab import COLOUR_NAMES, SHAPE_NAMES

STRIDE: Final = 8
"""Pixels a cell of the output maps."""
WORKING_SIDE: Final = 512
"""Shorter side, in pixels, of the pictures that the network sees."""
EARLY_CHANNELS: Final = 48
HEAD_CHANNELS: Final = 96
NUM_FEATURES: Final = EARLY_CHANNELS + HEAD_CHANNELS
_LEVEL_CHANNELS: Final = (EARLY_CHANNELS, 96, 128, 144)  # at strides 4, 8, 16, 32
_LEVEL_BLOCKS: Final = (1, 2, 2, 2)
_MULTIPLE: Final = 32
_CANDIDATES: Final = 64
_SAME_OBJECT: Final = 0.45
"""Boxes that overlap more (intersection over union) are one object; scenes never hide so much of anything."""
_MAX_LOG_SIZE: Final = 5.0
_PRIOR: Final = -4.6
"""First logit of every heat: one cell in a hundred, so that the first steps do not drown in background."""


@dataclass(frozen=True, slots=True)
class Detection:
    """An object read from a picture; `box` is half-open pixels (x0, y0, x1, y1), scores are in [0, 1]."""

    shape: str
    colour: str
    score: float
    box: tuple[float, float, float, float]
    colour_score: float = 1.0


class Maps(NamedTuple):
    """What the network says about B pictures on a grid of h x w cells.

    `heat` float [B, 1, h, w]: logits of "an object has its middle here". `box` float [B, 4, h, w]: the middle's offset
    (x, y) from the cell's, in cells, then the logarithms of width and height in cells. `shape` float [B, shapes, h, w]
    and `colour` float [B, colours, h, w]: logits of what the object is. `features` float [B, NUM_FEATURES]: means over
    the picture of the early and the last hidden layer.
    """

    heat: Tensor
    box: Tensor
    shape: Tensor
    colour: Tensor
    features: Tensor


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.GroupNorm(8, outputs), nn.ReLU()
    )


class _Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _conv(channels, channels)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm = nn.GroupNorm(8, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.relu(x + self.norm(self.second(self.first(x))))
        return out


class Detector(nn.Module):
    """The network with its reading of pictures into detections.

    Attributes:
        min_score: weaker detections are not reported; calibrated at the end of the training.
    """

    def __init__(self, min_score: float = 0.3) -> None:
        super().__init__()
        self.min_score = min_score
        # Without a norm, which would take the picture's mean colour out of its colours.
        self.stem = nn.Sequential(
            nn.Conv2d(48, EARLY_CHANNELS, 3, 1, 1),  # 4 x 4 pixels x 3 colours
            nn.ReLU(),
            nn.Conv2d(EARLY_CHANNELS, EARLY_CHANNELS, 1),
            nn.ReLU(),
        )
        self.levels = nn.ModuleList()
        for level, (channels, blocks) in enumerate(zip(_LEVEL_CHANNELS, _LEVEL_BLOCKS, strict=True)):
            down = [_conv(_LEVEL_CHANNELS[level - 1], channels, 2)] if level else []
            self.levels.append(nn.Sequential(*down, *(_Block(channels) for _ in range(blocks))))
        self.laterals = nn.ModuleList(
            nn.Conv2d(channels, HEAD_CHANNELS, 1) for channels in _LEVEL_CHANNELS[1:]
        )
        self.tower = nn.Sequential(_conv(HEAD_CHANNELS, HEAD_CHANNELS), _conv(HEAD_CHANNELS, HEAD_CHANNELS))
        self.heat = nn.Conv2d(HEAD_CHANNELS, 1, 1)
        self.box = nn.Conv2d(HEAD_CHANNELS, 4, 1)
        self.shape = nn.Conv2d(HEAD_CHANNELS, len(SHAPE_NAMES), 1)
        self.colour = nn.Sequential(  # also sees the stem: most colours are plain to see on the spot
            nn.Conv2d(HEAD_CHANNELS + EARLY_CHANNELS, HEAD_CHANNELS, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(HEAD_CHANNELS, len(COLOUR_NAMES), 1),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.normal_(self.heat.weight, std=0.01)
        self.heat.bias = nn.Parameter(torch.full((1,), _PRIOR))

    def forward(self, images: Tensor) -> Maps:
        """Maps of pictures at the working size: float [B, 3, H, W] in [0, 1], H and W multiples of 32."""
        x = functional.pixel_unshuffle((images - 0.5) * 4.0, 4)  # [B, 48, H/4, W/4]
        local = self.stem(x)
        x = early = self.levels[0](local)
        pyramid = []
        for level in self.levels[1:]:
            x = level(x)
            pyramid.append(x)
        merged = self.laterals[-1](pyramid[-1])
        for lateral, finer in zip(list(self.laterals)[-2::-1], pyramid[-2::-1], strict=True):
            merged = lateral(finer) + functional.interpolate(merged, scale_factor=2.0, mode="nearest")
        hidden = self.tower(merged)  # [B, C, H/8, W/8]
        colour = self.colour(torch.cat((hidden, functional.avg_pool2d(local, 2)), 1))
        features = torch.cat((early.float().mean((2, 3)), hidden.float().mean((2, 3))), 1)
        return Maps(
            self.heat(hidden).float(),
            self.box(hidden).float(),
            self.shape(hidden).float(),
            colour.float(),
            features,
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are, and pictures have to be."""
        return self.heat.weight.device

    def detect(self, images: Tensor) -> list[list[Detection]]:
        """Objects of B pictures, surest first; `images` float32 [B, 3, H, W] in [0, 1] on the detector's device."""
        return self.read(images)[0]

    def features(self, images: Tensor) -> Tensor:
        """Features float32 [B, NUM_FEATURES] of pictures float32 [B, 3, H, W] in [0, 1], for the Frechet distance."""
        return self.read(images)[1]

    @torch.no_grad()
    def read(self, images: Tensor) -> tuple[list[list[Detection]], Tensor]:
        """Detections and features in one pass; see `detect` and `features`."""
        resized = _to_working_size(images)
        maps = self(resized)
        scale = (images.shape[-1] / resized.shape[-1], images.shape[-2] / resized.shape[-2])
        return decode(maps, self.min_score, scale), maps.features


def _to_working_size(images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    zoom = WORKING_SIDE / min(height, width)
    size = [max(1, round(side * zoom / _MULTIPLE)) * _MULTIPLE for side in (height, width)]
    if size == [height, width]:
        return images
    return functional.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)


def decode(maps: Maps, min_score: float, scale: tuple[float, float] = (1.0, 1.0)) -> list[list[Detection]]:
    """Objects that maps tell of: the peaks of the heat, one for every place.

    Args:
        maps: of B pictures.
        min_score: least score of an object: how sure its place is times how sure its shape is.
        scale: picture pixels for one pixel of the working size, along x and y.

    Returns:
        For each picture its detections, surest first.
    """
    heat = maps.heat.sigmoid()
    rows, columns = heat.shape[-2:]
    peaks = heat * (heat == functional.max_pool2d(heat, 3, 1, 1))
    heats, cells = peaks.flatten(1).topk(min(_CANDIDATES, rows * columns))  # [B, K]

    def at_cells(values: Tensor) -> Tensor:  # [B, C, h, w] -> [B, C, K]
        return values.flatten(2).gather(2, cells[:, None].expand(-1, values.shape[1], -1))

    box = at_cells(maps.box)
    x = (cells % columns + 0.5 + box[:, 0]) * (STRIDE * scale[0])
    y = (torch.div(cells, columns, rounding_mode="floor") + 0.5 + box[:, 1]) * (STRIDE * scale[1])
    half = 0.5 * STRIDE * box[:, 2:].clamp_max(_MAX_LOG_SIZE).exp()
    half_x, half_y = half[:, 0] * scale[0], half[:, 1] * scale[1]
    boxes = torch.stack((x - half_x, y - half_y, x + half_x, y + half_y), -1)  # [B, K, 4]
    shape_scores, shapes = at_cells(maps.shape).softmax(1).max(1)
    colour_scores, colours = at_cells(maps.colour).softmax(1).max(1)
    scores = heats * shape_scores
    return [
        _suppress(
            [
                Detection(SHAPE_NAMES[shape], COLOUR_NAMES[colour], score, (x0, y0, x1, y1), sure)
                for shape, colour, score, (x0, y0, x1, y1), sure in zip(*picture, strict=True)
                if score >= min_score
            ]
        )
        for picture in zip(
            *(part.tolist() for part in (shapes, colours, scores, boxes, colour_scores)), strict=True
        )
    ]


def overlap(first: Detection, second: Detection) -> float:
    """Intersection over union of two boxes."""
    ax0, ay0, ax1, ay1 = first.box
    bx0, by0, bx1, by1 = second.box
    width, height = min(ax1, bx1) - max(ax0, bx0), min(ay1, by1) - max(ay0, by0)
    if width <= 0.0 or height <= 0.0:
        return 0.0
    shared = width * height
    return shared / ((ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - shared)


def _suppress(found: list[Detection]) -> list[Detection]:
    """Keep the surest of every group that shares a place, whatever the shapes."""
    kept: list[Detection] = []
    for detection in sorted(found, key=lambda detection: -detection.score):
        if all(overlap(detection, other) <= _SAME_OBJECT for other in kept):
            kept.append(detection)
    return kept
