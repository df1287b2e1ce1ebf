"""Exact attention over ragged batches, with the entropy of every query's attention on request."""

from .inputs import AttentionInputs
from .naive import attention, attention_entropy

__all__ = ["AttentionInputs", "attention", "attention_entropy"]
