"""Exact attention over ragged batches, with the entropy of every query's attention on request."""

from .naive import attention, attention_entropy

__all__ = ["attention", "attention_entropy"]
