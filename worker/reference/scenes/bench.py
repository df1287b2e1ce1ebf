"""How fast a GPU renders scenes: `python -m toprovar_batch.worker.reference.scenes.bench`.

The fused pictures are compared with those of the PyTorch reference first; nothing is timed when they differ.
"""

import time
from typing import Literal

import click
import torch

from .pack import SceneTensors, pack
from .render import render
from .sampler import sample_scenes

_SIZES = (256, 512)
_BATCHES = (64, 128, 256)
_SECONDS = 0.7
_MOST_FAR = 1e-3  # of the pixels may differ by more than 2 of 255: silhouettes that fall the other way


def _check(tensors: SceneTensors, size: int) -> None:
    got = render(tensors, (size, size), backend="triton")
    want = render(tensors, (size, size), backend="torch")
    far = (want.images - got.images).abs().amax(1)
    same = (want.instances == got.instances).float().mean().item()
    click.echo(
        f"fused against PyTorch, {len(tensors)} scenes at {size} px: largest difference {far.max():.4f}, "
        f"instances equal {same:.6f}"
    )
    if not (far > 2 / 255).float().mean() <= _MOST_FAR:
        raise click.ClickException("the fused pictures differ from the reference; nothing was timed")


def _seconds(tensors: SceneTensors, size: int, backend: Literal["triton", "torch"]) -> float:
    """Mean seconds of a batch, over as many as fit the time."""
    render(tensors, (size, size), backend=backend)
    torch.cuda.synchronize()
    start, count = time.perf_counter(), 0
    while count < 3 or time.perf_counter() - start < _SECONDS:
        render(tensors, (size, size), backend=backend)
        torch.cuda.synchronize()
        count += 1
    return (time.perf_counter() - start) / count


@click.command()
def bench() -> None:
    """Check the fused renderer on this machine's GPU, then time it beside the PyTorch one."""
    if not torch.cuda.is_available():
        raise click.ClickException("PyTorch sees no GPU here; the fused renderer needs one")
    click.echo(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    scenes = pack(sample_scenes(5, max(_BATCHES))).to("cuda")
    _check(scenes[:32], 256)
    for size in _SIZES:
        for batch in _BATCHES:
            each = _seconds(scenes[:batch], size, "triton")
            click.echo(f"{size} px, batch {batch}, fused: {batch / each:,.0f} images/s")
        each = _seconds(scenes[:64], size, "torch")
        click.echo(f"{size} px, batch 64, PyTorch: {64 / each:,.0f} images/s")


if __name__ == "__main__":
    bench()
