"""Endless pictures with captions for training: scenes from worker processes, rendered on the device."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from toprovar_batch.worker.reference.scenes import SceneBatch, make_batch, render


class _SceneBatches(Dataset[SceneBatch]):
    """Batch i of a seed is the same whatever was drawn before."""

    def __init__(self, seed: int, batch_size: int, length: int, split: str) -> None:
        self._seed, self._batch_size, self._length, self._split = seed, batch_size, length, split

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> SceneBatch:
        return make_batch(self._seed, index * self._batch_size, self._batch_size, self._split)


def scene_batches(
    seed: int, batch_size: int, length: int, *, split: str = "train", num_workers: int = 0
) -> Iterator[SceneBatch]:
    """Batches of captioned scenes, in order.

    Args:
        seed: of the endless list of scenes.
        batch_size: scenes per batch.
        length: batches.
        split: "train" or "heldout".
        num_workers: processes that make scenes; 0 makes them here.
    """
    dataset = _SceneBatches(seed, batch_size, length, split)
    return iter(
        DataLoader(
            dataset,
            batch_size=None,
            shuffle=False,
            num_workers=num_workers,
            prefetch_factor=8 if num_workers else None,
        )
    )


def render_pixels(batch: SceneBatch, side: int, device: torch.device) -> Tensor:
    """Render a batch: [B, 3, side, side] float32 in [-1, 1]."""
    return render(batch.tensors.to(device), (side, side), supersample=2).images * 2 - 1
