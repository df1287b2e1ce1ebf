"""Normalisation of queries and keys and their rotary embedding, with the write into the cache, in one step."""

from .naive import qk_norm_rope, qk_norm_rope_append

__all__ = ["qk_norm_rope", "qk_norm_rope_append"]
