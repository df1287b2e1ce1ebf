"""Normalisation of queries and keys and their rotary embedding, in one step."""

from .naive import qk_norm_rope

__all__ = ["qk_norm_rope"]
