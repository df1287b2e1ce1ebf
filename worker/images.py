"""Pixels to encoded files."""

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from .specs import ImageSpec

_THREADS = 8


def encoding_threads() -> ThreadPoolExecutor:
    """Make threads that encode images; the encoders run outside the GIL."""
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="encode")


def encode_images(
    pixels: np.ndarray, spec: ImageSpec, threads: ThreadPoolExecutor | None = None
) -> list[bytes]:
    """Encode [B, H, W, 3] uint8 RGB images, several at a time.

    Args:
        pixels: of the images.
        spec: the format, its quality and how it keeps colours.
        threads: from `encoding_threads`; None: made for this call.
    """
    if threads is None:
        with encoding_threads() as threads_of_call:
            return encode_images(pixels, spec, threads_of_call)
    return list(threads.map(lambda image: _encode_image(image, spec), pixels))


def _encode_image(pixels: np.ndarray, spec: ImageSpec) -> bytes:
    buffer = io.BytesIO()
    options: dict[str, Any] = {"quality": spec.quality}
    if spec.format == "png":
        # The lowest compression level takes a quarter of the default's time for a few percent more bytes.
        options = {"compress_level": 1}
    elif spec.format == "jpeg":
        options["subsampling"] = spec.jpeg_subsampling
    Image.fromarray(pixels).save(buffer, format=spec.format, **options)
    return buffer.getvalue()
