"""Drawing bits from guided logits with noise that depends on a sample's own seed alone."""

from .naive import philox_4x32, sample_bits, uniform_noise

__all__ = ["philox_4x32", "sample_bits", "uniform_noise"]
