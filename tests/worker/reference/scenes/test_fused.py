"""The fused kernels draw the pictures of the PyTorch reference: on CUDA as compiled, elsewhere in Triton's interpreter."""

import os
import subprocess
import sys
from dataclasses import replace
from itertools import product

import pytest
import torch

from toprovar_batch.worker.reference.scenes import Render, SceneTensors, pack, render, sample_scenes
from toprovar_batch.worker.reference.scenes.vocab import (
    BACKDROPS,
    FLOORS,
    MATERIALS,
    MAX_OBJECTS,
    PATTERNS,
    SHAPES,
)

ON_GPU = torch.cuda.is_available()
CASES = ("sampled", "shapes", "grounds", "odd", "samples", "empty")
FAST = "samples"


def _grounds() -> SceneTensors:
    """Every floor before every backdrop."""
    pairs = torch.tensor(list(product(range(len(FLOORS)), range(len(BACKDROPS)))))
    tensors = pack(sample_scenes(21, len(pairs)))
    return replace(tensors, ground_kinds=pairs)


def _shapes() -> SceneTensors:
    """Every shape with every pattern, materials, digits and standing rings in turn."""
    pairs = list(product(range(len(SHAPES)), range(len(PATTERNS))))
    alone = [s for s in sample_scenes(22, 600) if len(s.objects) == 1][: len(pairs)]
    alone = [replace(s, objects=(replace(s.objects[0], standing=i % 2 == 0),)) for i, s in enumerate(alone)]
    tensors = pack(alone)
    kinds = tensors.object_kinds.clone()
    for row, (shape, pattern) in enumerate(pairs):
        digit = (row * 7) % 10 if pattern == 0 else -1
        kinds[row, 0] = torch.tensor([shape, (row // 2) % len(MATERIALS), pattern, digit])
    return replace(tensors, object_kinds=kinds)


def _case(name: str) -> tuple[SceneTensors, tuple[int, int], int]:
    if name == "sampled":
        return pack(sample_scenes(23, 64)), (32, 32), 2
    if name == "shapes":
        return _shapes(), (32, 32), 2
    if name == "grounds":
        return _grounds(), (32, 32), 1
    if name == "odd":
        return pack(sample_scenes(24, 4)), (37, 61), 1
    if name == "samples":
        return pack(sample_scenes(25, 4)), (24, 24), 3
    tensors = pack(sample_scenes(26, 2))
    return replace(tensors, object_kinds=torch.full_like(tensors.object_kinds, -1)), (24, 24), 2


def _compare(name: str) -> None:
    from toprovar_batch.worker.reference.scenes.fused import DEFAULT_TILES, Tiles, render_fused

    tensors, size, supersample = _case(name)
    # the interpreter likes few large tiles
    tiles = DEFAULT_TILES if ON_GPU else Tiles(32, 32, 1, 1, 32, 32, 1)
    if name == "odd":
        tiles = DEFAULT_TILES
    tensors = tensors.to("cuda" if ON_GPU else "cpu")
    want = render(tensors, size, supersample, backend="torch")
    got = Render(*render_fused(tensors, *size, supersample, tiles))
    far = (want.images - got.images).abs().amax(1)
    report = f"{name}: max {far.max():.2e}, above 2/255 {(far > 2 / 255).float().mean():.2e}"
    same = (want.instances == got.instances).float().mean()
    report += f", instances equal {same:.6f}, boxes {(want.boxes - got.boxes).abs().max():.0f}"
    report += f", visible {(want.visible_fraction - got.visible_fraction).abs().max():.4f}"
    print(report, flush=True)
    assert got.images.shape == want.images.shape, report
    assert got.boxes.shape == (len(tensors), MAX_OBJECTS, 4), report
    assert (far > 2 / 255).float().mean() < 1e-3, report
    assert far.mean() < 1e-4, report
    assert same > 0.9995, report
    assert (want.boxes - got.boxes).abs().max() <= 1.0, report
    assert (want.visible_fraction - got.visible_fraction).abs().max() < 0.01, report


@pytest.mark.parametrize(
    "name", [FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in CASES if name != FAST)]
)
def test_fused_and_reference_pictures_agree(name: str) -> None:
    pytest.importorskip("triton")
    if ON_GPU:
        _compare(name)
        return
    # Triton reads the switch when it is imported, so the interpreter needs a process of its own
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "1",
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, name],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(ValueError, match="'cuda'"):
        render(pack(sample_scenes(1, 1)), (8, 8), backend="cuda")


if __name__ == "__main__":
    torch.set_num_threads(1)
    _compare(sys.argv[1])
