"""What a batch takes of a GPU's memory, told without one."""

from functools import partial
from pathlib import Path

import pytest
import torch

from toprovar_batch.kernels.ops import Backend
from toprovar_batch.worker.batch_memory import (
    BatchKind,
    batch_bytes,
    decoder_bytes,
    layer_bytes,
    static_bytes,
)
from toprovar_batch.worker.batching import USABLE, choose_batch_size
from toprovar_batch.worker.infinity.config import TransformerArchitecture, VaeArchitecture
from toprovar_batch.worker.infinity.kv_cache import cache_bytes
from toprovar_batch.worker.infinity.schedule import scale_schedule
from toprovar_batch.worker.infinity.vae import Decoder
from toprovar_batch.worker.models import random_transformer
from toprovar_batch.worker.presets import get_preset
from toprovar_batch.worker.pruning.policies.specs import (
    DenseSpec,
    DetailSpec,
    FastvarSpec,
    FixedExitSpec,
    ReplaySpec,
    SkipvarSpec,
    ToprovarSpec,
)
from toprovar_batch.worker.resolved import resolve
from toprovar_batch.worker.specs import EngineSpec, ModelSpec
from toprovar_batch.worker.workspace import Workspace

CPU = torch.device("cpu")
GB = 10**9
WEIGHTS = {"infinity-2b": 7.2 * GB, "infinity-8b": 21 * GB}  # with text encoder and VAE, in bfloat16
L40S, H200 = 47 * GB, 149 * GB  # what CUDA leaves of their memory
BLOCK_M = 128


def _kind(preset="infinity-2b", ratio=1.0, resolution="1M", **changes):
    given = get_preset(preset)
    settings = {"guided": True, "packs": True, "keeps_changes": False} | changes
    schedule = scale_schedule(ratio, resolution)
    return BatchKind(given.transformer, given.vae, torch.bfloat16, schedule, **settings)


def test_layers_pass_their_cases(run_cases):
    assert run_cases(Path(__file__).with_name("batch_memory_cases.py")) == 4


class _Nothing:
    """Replays nothing, and has room for bodies of `most` bytes."""

    def __init__(self, most=10**12):
        self.most = most

    def reserve(self, size):
        if size > self.most:
            raise torch.OutOfMemoryError
        self.reserved = size

    def clear(self):
        pass

    def usage(self):
        return {}


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("patchify", [True, False])
def test_what_stays_in_place_is_counted_to_the_byte(guided, packs, patchify):
    sizes = TransformerArchitecture(3, 64, 2, 24, 32)
    vae = VaeArchitecture(8, 32, (1, 2, 4, 4) if patchify else (1, 2, 4, 4, 4), spatial_patchify=patchify)
    for dtype in (torch.float32, torch.bfloat16):
        kind = BatchKind(sizes, vae, dtype, scale_schedule(1.5, "0.06M"), guided, packs, keeps_changes=False)
        replay = _Nothing()
        with torch.inference_mode():
            workspace = Workspace(
                random_transformer(sizes, 3, CPU, dtype), Backend("triton", "counted"), replay
            )
            shape = kind.shape(3, text_tokens=64)
            static = workspace.batch(shape)
        assert workspace.usage()["bytes"] == static_bytes(kind, shape, workspace.block_m)
        assert replay.reserved == layer_bytes(sizes, shape.most_tokens, dtype)
        assert len(static.some_x) == (shape.most_tokens if packs else 0)
        workspace.release()
        assert workspace.usage()["bytes"] == 0


def test_a_batch_whose_layers_find_no_room_gives_everything_back():
    sizes = TransformerArchitecture(2, 64, 2, 24, 32)
    vae = VaeArchitecture(8, 32, (1, 2, 4, 4, 4), spatial_patchify=False)
    kind = BatchKind(sizes, vae, torch.float32, scale_schedule(1.0, "0.06M"), True, True, False)
    most = layer_bytes(sizes, kind.shape(2).most_tokens, torch.float32)
    with torch.inference_mode():
        model = random_transformer(sizes, 3, CPU, torch.float32)
        workspace = Workspace(model, Backend("triton", "counted"), _Nothing(most))
        with pytest.raises(torch.OutOfMemoryError):
            workspace.batch(kind.shape(4))
        workspace.release()
        assert workspace.usage()["bytes"] == 0
        assert workspace.batch(kind.shape(2)).shape.prompts == 2


def test_the_count_is_what_a_gpu_was_measured_to_take():
    kind = _kind()
    for images, measured in ((1, 3_714_379_305), (8, 29_714_977_096)):
        assert static_bytes(kind, kind.shape(images, text_tokens=128), BLOCK_M) == measured


@pytest.mark.parametrize("preset", ["infinity-2b", "infinity-8b", "tiny"])
def test_the_decoder_is_widest_in_the_second_block_at_full_size(preset):
    with torch.device("meta"):
        decoder = Decoder(get_preset(preset).vae)
    maps = _widest_maps(decoder, pixels=1024 * 1024)
    kind = _kind(preset)
    assert decoder_bytes(kind.vae, kind.schedule, kind.dtype) == 2 * maps


def _widest_maps(decoder, pixels):
    """Numbers that the fused decoder holds at once, as its code names them."""
    most, area, given = 0, pixels / 4 ** (len(decoder.up) - 1), decoder.conv_in.out_channels
    for level in reversed(decoder.up):
        held = given * area  # `Decoder._fused` names the level's input until the level is done
        for number, block in enumerate(level.block):
            wide, out = block.conv1.in_channels * area, block.conv1.out_channels * area
            beside = held if number else 0  # the first block's input is the level's
            most = max(most, beside + 2 * wide + out, beside + wide + 3 * out)
        if level.upsample is not None:
            most = max(most, held + out + 4 * out + 4 * out)
            area, given = 4 * area, level.upsample.conv.out_channels
    return most


def test_all_that_a_batch_takes_grows_with_its_images():
    for block_m in (None, BLOCK_M):
        for kind in (_kind(), _kind("infinity-8b", packs=False), _kind(guided=False, resolution="0.06M")):
            taken = [batch_bytes(kind, block_m, images) for images in range(1, 20)]
            assert taken == sorted(set(taken))


def test_a_policy_pays_for_what_it_keeps():
    dense, packs = batch_bytes(_kind(packs=False), BLOCK_M, 8), batch_bytes(_kind(), BLOCK_M, 8)
    tokens, width = 8 * 2 * 4096, 2048
    assert packs - dense == tokens * width * (4 + 2)
    for block_m in (None, BLOCK_M):
        kept = batch_bytes(_kind(keeps_changes=True), block_m, 8) - batch_bytes(_kind(), block_m, 8)
        assert kept == 32 * 8 * 2 * 48 * 48 * width * 2


def test_without_graphs_it_is_the_cache_and_a_multiple_of_the_hidden_state():
    cache = cache_bytes(get_preset("infinity-2b").transformer, 2, 6425, 4096, torch.bfloat16)
    assert batch_bytes(_kind(), None, 1) == cache + 2 * 4096 * 2048 * 2 * 25


def _chosen(kind, memory, preset, block_m=BLOCK_M):
    free = memory - WEIGHTS[preset]
    images = choose_batch_size(kind.image_tokens, partial(batch_bytes, kind, block_m), free)
    assert images == 1 or batch_bytes(kind, block_m, images) <= USABLE * free
    return images


@pytest.mark.parametrize(
    ("preset", "memory", "resolution", "images"),
    [
        ("infinity-2b", L40S, "1M", 8),
        ("infinity-2b", L40S, "0.25M", 24),
        ("infinity-2b", H200, "1M", 8),
        ("infinity-2b", H200, "0.25M", 34),
        ("infinity-2b", H200, "0.06M", 162),
        ("infinity-8b", L40S, "1M", 2),
        ("infinity-8b", H200, "1M", 8),
        ("infinity-8b", H200, "0.25M", 34),
    ],
)
@pytest.mark.parametrize("packs", [True, False])
def test_a_gpu_takes_a_busy_batch_or_what_its_memory_holds(preset, memory, resolution, images, packs):
    assert _chosen(_kind(preset, resolution=resolution, packs=packs), memory, preset) == images


def test_kept_changes_and_long_pictures_leave_room_for_fewer_images():
    assert _chosen(_kind(keeps_changes=True), L40S, "infinity-2b") == 7
    assert _chosen(_kind("infinity-8b", keeps_changes=True), L40S, "infinity-8b") == 1
    assert _chosen(_kind(ratio=2.0), L40S, "infinity-2b") == 7
    assert _chosen(_kind(), L40S, "infinity-2b", block_m=None) == 8


def test_more_than_was_measured_is_counted_and_not_much_more():
    # Peaks of allocated and of reserved memory at 1M on one H200 over four batches, and the weights that are in both. What
    # is reserved and not allocated PyTorch gives back before it lacks memory.
    for preset, images, allocated, reserved, weights in (
        ("infinity-2b", 1, 14.045, 17.174, 7.122),
        ("infinity-2b", 8, 43.402, 44.854, 7.122),
        ("infinity-8b", 2, 41.414, 44.002, 19.666),
    ):
        counted = weights + batch_bytes(_kind(preset), BLOCK_M, images) / 1e9
        assert allocated < counted < 1.25 * allocated
        assert reserved - weights < (counted - weights) / USABLE


@pytest.mark.parametrize(
    ("policy", "packs", "keeps"),
    [
        (DenseSpec(), False, False),
        (FixedExitSpec(), False, False),
        (SkipvarSpec(), False, False),
        (DetailSpec(), True, False),
        (ReplaySpec(preset="paper-2b"), True, False),
        (FastvarSpec(), True, True),
        (ToprovarSpec(), True, True),
    ],
)
def test_a_jobs_policy_says_what_its_batches_hold(policy, packs, keeps):
    spec = resolve(EngineSpec(model=ModelSpec(preset="infinity-2b", random_weights=True), policy=policy))
    assert BatchKind.of(spec, 1.0, torch.bfloat16) == _kind(packs=packs, keeps_changes=keeps)
