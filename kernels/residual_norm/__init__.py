"""The residual stream in float32: gated additions and the layer norms between sublayers, in one pass over a row."""

from .naive import Modulation, add_and_norm, gated_add, modulated_norm

__all__ = ["Modulation", "add_and_norm", "gated_add", "modulated_norm"]
