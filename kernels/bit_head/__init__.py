"""The head: hidden states to the logits of bits."""

from .naive import bit_logits

__all__ = ["bit_logits"]
