"""Offline batch image generation with Infinity and ToProVAR pruning on Ray."""

__version__ = "0.1.0"
