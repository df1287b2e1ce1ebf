"""Exact attention over ragged batches, with the entropy of every query's attention on request."""

from .layout import KeyLengths, TokenLayout
from .reference import attention, attention_entropy

__all__ = ["KeyLengths", "TokenLayout", "attention", "attention_entropy"]
