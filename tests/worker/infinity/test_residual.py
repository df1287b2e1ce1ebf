"""The hidden state between sublayers stays in float32, and its additions ride on the norms that follow."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from toprovar_batch.kernels.layout import TokenLayout
from toprovar_batch.kernels.ops import PYTORCH, Modulation
from toprovar_batch.worker.batch_runner import BatchRunner
from toprovar_batch.worker.infinity import residual as module
from toprovar_batch.worker.infinity.config import TransformerArchitecture
from toprovar_batch.worker.infinity.kv_cache import KVCache
from toprovar_batch.worker.infinity.residual import Residual
from toprovar_batch.worker.infinity.rope import rope_2d
from toprovar_batch.worker.infinity.schedule import scale_schedule
from toprovar_batch.worker.models import random_transformer
from toprovar_batch.worker.pruning.packing import PackedScale
from toprovar_batch.worker.pruning.plan import ScalePlan
from toprovar_batch.worker.pruning.restoration import LayerChanges
from toprovar_batch.worker.sampling_settings import SamplingSettings

CPU = torch.device("cpu")
SCHEDULE = scale_schedule(1.0, "0.06M")
SIZES = TransformerArchitecture(depth=3, width=64, num_heads=2, text_width=24, bits_per_token=8)


@pytest.mark.slow
def test_the_blocks_pass_their_cases(run_cases):
    pytest.importorskip("triton")
    assert run_cases(Path(__file__).with_name("residual_cases.py")) >= 4


def _text(model, rows):
    generator = torch.Generator().manual_seed(1)
    return model.encode_text(
        [torch.randn(3 + row, SIZES.text_width, generator=generator) for row in range(rows)]
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_updates_of_a_large_hidden_state_are_kept(dtype):
    """Beside 4096 a step of bfloat16 is 32, one of float16 is 4, and a block adds less."""
    x = torch.full((16, 64), 4096.0)
    x += torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    size, layout = (4, 4), TokenLayout.dense(1, 16, CPU)
    rotation = rope_2d(size, (64, 64), SIZES.head_dim, CPU)
    changes = []
    for compute in (torch.float32, dtype):
        model = random_transformer(SIZES, 3, CPU, compute)
        with torch.inference_mode():
            text = _text(model, 1)
            cache = KVCache(SIZES, 1, 16, 0, CPU, compute, PYTORCH)
            after, _ = model.blocks[0](
                x, text.blocks[0], text.text_lengths, layout, rotation, cache, 0, entropy_rows=()
            )
        assert after.dtype == torch.float32
        changes.append(after - x)
    exact, low = changes
    assert exact.abs().max() < 4
    assert (low - exact).norm() < 0.03 * exact.norm()


def test_what_conditions_the_blocks_stays_in_float32():
    model = random_transformer(SIZES, 3, CPU, torch.bfloat16)
    with torch.inference_mode():
        text = _text(model, 2)
        assert model.embed_first(text).dtype == torch.float32
        assert model.embed(torch.randn(2, 4, 8), 1).dtype == torch.float32
    for block, context in zip(model.blocks, text.blocks, strict=True):
        assert context.adaln.dtype == block.ca_norm.weight.dtype == torch.float32
        assert context.text_keys.dtype == context.qkv_bias.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_scale_makes_each_addition_in_the_pass_of_the_norm_that_follows(monkeypatch, dtype):
    calls = Counter()
    for name in ("add_and_norm", "gated_add", "modulated_norm"):
        original = getattr(module, name)

        def counted(*arguments, original=original, name=name, **options):
            calls[name] += 1
            return original(*arguments, **options)

        monkeypatch.setattr(module, name, counted)
    model = random_transformer(SIZES, 3, CPU, dtype)
    settings = SamplingSettings((3.0,) * 7, (1.0,) * 7)
    with torch.inference_mode():
        state = BatchRunner(
            model,
            _text(model, 4),
            SCHEDULE,
            settings,
            largest_map=(64, 64),
            codebook_dim=8,
            spatial_patchify=False,
            backend=PYTORCH,
        )
        state.run_scale(0)
    assert calls == {"modulated_norm": 1, "add_and_norm": 3 * SIZES.depth - 1, "gated_add": 1}


def test_a_residual_is_the_same_however_often_it_is_settled():
    generator = torch.Generator().manual_seed(4)
    layout = TokenLayout((3, 0, 2), CPU)
    x, *updates = torch.randn(4, 5, 64, generator=generator)
    gates, scale, shift = torch.randn(3, 3, 3, 64, generator=generator)
    given = x.clone()
    results = []
    for settle in (False, True):
        residual, normed = Residual(x, layout, PYTORCH), []
        for update, gate, modulation in zip(updates, gates, map(Modulation, scale, shift), strict=True):
            residual.add(update.bfloat16(), gate)
            if settle:
                residual.settled()
            normed.append(residual.normed(modulation, torch.bfloat16))
        residual.add(updates[0])
        residual.add(updates[1])  # one more before any norm
        results.append([*normed, residual.settled(), residual.settled()])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    assert torch.equal(x, given)
    residual.add(updates[0])
    residual.replace(x)
    assert residual.settled() is x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_changes_take_the_memory_of_the_compute_dtype(dtype):
    packed = PackedScale(replace(ScalePlan.dense(4, 1, 1), changes_of=(0,)), 1, CPU)
    changes = LayerChanges(1, 1, dtype)
    before = torch.randn(4, 8)
    changes.keep(0, (2, 2), packed, before, before + 0.5)
    (_, kept), *_ = changes._kept[0].values()
    assert kept.dtype == dtype
    restored = torch.ones(16, 8)
    changes.restore(0, (4, 4), PackedScale(ScalePlan.dense(16, 1, 1), 1, CPU), None, restored)
    torch.testing.assert_close(restored, torch.full((16, 8), 1.5), rtol=1e-2, atol=0)
