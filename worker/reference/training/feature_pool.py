"""Rendered scenes as the VAE's features, with their captions as tokens: drawn many times while new ones come in."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from toprovar_batch.worker.infinity.vae import Vae
from toprovar_batch.worker.reference.scenes import SceneBatch

from .scene_stream import render_pixels
from .text_training import tokenize


@dataclass(frozen=True)
class Drawn:
    """A batch of the pool.

    Attributes:
        features: [B, z, H, W] float32 of the VAE's encoder.
        ids: [B, N] int64 tokens of a caption each.
        seen: [B, N] bool, False for padding.
    """

    features: Tensor
    ids: Tensor
    seen: Tensor


class FeaturePool:
    """The newest pictures; drawing one costs nothing, encoding a new one as much as a training step on it."""

    def __init__(
        self, capacity: int, shape: tuple[int, ...], text_tokens: int, device: torch.device, seed: int
    ) -> None:
        """Reserve room.

        Args:
            capacity: pictures kept.
            shape: (z, H, W) of their features.
            text_tokens: N, tokens a caption is padded to.
            device: of the storage and of the draws.
            seed: of the draws.
        """
        self._features = torch.empty((capacity, *shape), dtype=torch.float16, device=device)
        self._ids = torch.zeros((capacity, text_tokens), dtype=torch.int16, device=device)
        self._lengths = torch.zeros(capacity, dtype=torch.int16, device=device)
        self._added = 0
        self._generator = torch.Generator(device).manual_seed(seed)

    def add(self, features: Tensor, ids: Tensor, lengths: Tensor) -> None:
        """Take in features [B, z, H, W], tokens [B, N] and their counts [B], in place of the oldest when full."""
        capacity = len(self._lengths)
        places = (torch.arange(len(features), device=features.device) + self._added) % capacity
        self._features[places] = features.half()
        self._ids[places] = ids.to(self._ids)
        self._lengths[places] = lengths.to(self._lengths)
        self._added += len(features)

    def draw(self, count: int) -> Drawn:
        """Random pictures."""
        filled = min(self._added, len(self._lengths))
        places = torch.randint(filled, (count,), generator=self._generator, device=self._lengths.device)
        columns = torch.arange(self._ids.shape[1], device=places.device)
        return Drawn(
            self._features[places].float(), self._ids[places].long(), columns < self._lengths[places, None]
        )


class PoolFiller:
    """Renders scenes, encodes them and adds them to a pool."""

    def __init__(
        self,
        pool: FeaturePool,
        scenes: Iterator[SceneBatch],
        vae: Vae,
        tokenizer: Any,
        side: int,
        text_tokens: int,
    ) -> None:
        """Remember what to use.

        Args:
            pool: to fill.
            scenes: endless batches of one size.
            vae: with its encoder.
            tokenizer: of the text encoder.
            side: of the pictures, in pixels.
            text_tokens: that captions are padded and cut to.
        """
        self._pool, self._scenes, self._vae = pool, scenes, vae
        self._tokenizer, self._side, self._text_tokens = tokenizer, side, text_tokens

    @torch.no_grad()
    def add_batch(self) -> None:
        """Add the next batch of scenes."""
        batch = next(self._scenes)
        weight = self._vae.encoder.conv_in.weight
        images = render_pixels(batch, self._side, weight.device).to(weight.dtype)
        images = images.contiguous(memory_format=torch.channels_last)
        ids, lengths = tokenize(self._tokenizer, batch.captions, self._text_tokens)
        self._pool.add(self._vae.encoder(images), ids, lengths)
