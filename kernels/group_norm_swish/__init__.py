"""Group norm with swish after it, and the residual sum before it, for maps of any size."""

from .naive import group_norm_swish, residual_add

__all__ = ["group_norm_swish", "residual_add"]
