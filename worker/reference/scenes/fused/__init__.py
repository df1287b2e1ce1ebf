"""Fused renderer: the whole picture in five Triton kernels, with no word between GPU and host. Twin of `render`.

`setup` prepares each object, `see` finds what every sample sees, and `shade` lights and paints those samples. `ground`
puts floor and backdrop behind them. The end of `see` makes boxes and visible parts. A program works on one tile of
one picture, so kinds of shapes, patterns and textures are scalars there and branches cost nothing.
"""

from .draw import DEFAULT_TILES, Tiles, render_fused

__all__ = ["DEFAULT_TILES", "Tiles", "render_fused"]
