"""Offline batch image generation with Infinity and ToProVAR pruning on Ray."""

from importlib.metadata import version

__version__ = version("toprovar-batch")
