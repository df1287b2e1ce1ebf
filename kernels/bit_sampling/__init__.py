"""Drawing bits from logits: guidance, and noise that depends on a sample's own seed alone."""

from .naive import BitDraw, DrawnBits, draw_bits, philox_4x32, sample_bits, uniform_noise

__all__ = ["BitDraw", "DrawnBits", "draw_bits", "philox_4x32", "sample_bits", "uniform_noise"]
