"""The engine: the same image alone and in any batch, and errors that stay with their request."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from toprovar_batch.kernels.ops import PYTORCH
from toprovar_batch.worker.batch_runner import BatchRunner
from toprovar_batch.worker.engine import Engine
from toprovar_batch.worker.errors import ModelSpecError
from toprovar_batch.worker.guidance import text_rows
from toprovar_batch.worker.infinity.schedule import largest_map, scale_schedule
from toprovar_batch.worker.request import GenerationRequest
from toprovar_batch.worker.sampler import sample_codes
from toprovar_batch.worker.settings import resolve_device, resolve_settings
from toprovar_batch.worker.specs import (
    ArchitectureSpec,
    EngineSpec,
    ImageSpec,
    ModelSpec,
    RuntimeSpec,
    SamplingSpec,
)

SMALL = ArchitectureSpec(depth=2, width=64, num_heads=2, vae_channel_multipliers=(1, 1, 1, 1, 1))
PROMPTS = [
    "a red cube",
    "two blue spheres left of a very tall green cone, on a wooden floor, under a cloudy evening sky",
    "überall Würfel 立方体 🧊",
    "x",
    "a small yellow torus in front of a brick wall",
]


def _engine(batch_size=None, image_format="png", quality=95, **spec):
    engine = Engine(
        EngineSpec(
            model=ModelSpec(random_weights=True, architecture=SMALL),
            image=ImageSpec(resolution="0.06M", format=image_format, quality=quality),
            **spec,
        ),
        RuntimeSpec(device="cpu", batch_size=batch_size),
    )
    engine.setup()
    return engine


@pytest.fixture(scope="module")
def engine():
    return _engine()


def _request(index, **changes):
    fields = {
        "sample_id": f"s{index}",
        "prompt": PROMPTS[index % len(PROMPTS)],
        "negative_prompt": None,
        "seed": index,
    }
    return GenerationRequest(**(fields | changes))


def _codes(engine, requests):
    """The summed codes of requests generated as one batch: equal codes mean equal bits at every scale."""
    model = engine.model
    schedule = engine.schedule_of(requests[0].h_div_w)
    with torch.inference_mode():
        prompts = [text.features for text in model.text_encoder.encode([r.prompt for r in requests])]
        negatives = [
            model.text_encoder.encode([r.negative_prompt])[0].features if r.negative_prompt else None
            for r in requests
        ]
        rows = text_rows(model.transformer, prompts, negatives, guided=engine.settings.guided)
        state = BatchRunner(
            model.transformer,
            model.transformer.encode_text(rows),
            schedule,
            engine.settings,
            largest_map=largest_map(requests[0].h_div_w),
            codebook_dim=model.vae.sizes.codebook_dim,
            spatial_patchify=model.vae.sizes.spatial_patchify,
            backend=PYTORCH,
        )
        return sample_codes(state, torch.tensor([r.seed for r in requests]))


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingSpec(),
        SamplingSpec(cfg_scale=1.0, temperature=1.0, top_p=0),
        SamplingSpec(cfg_insertion_layer=-1),
        SamplingSpec(cfg_insertion_layer=-2),
        SamplingSpec(greedy=True),
    ],
)
def test_the_same_seed_gives_the_same_bits_alone_and_in_any_batch(sampling):
    engine = _engine(sampling=sampling)
    requests = [_request(index, negative_prompt="blurry" if index == 3 else None) for index in range(5)]
    together = _codes(engine, requests)
    reordered = _codes(engine, [requests[4], requests[1], requests[0]])
    for index, request in enumerate(requests):
        assert torch.equal(_codes(engine, [request])[0], together[index])
    assert torch.equal(reordered, together[[4, 1, 0]])


def test_images_are_the_same_bytes_alone_and_in_a_batch(engine):
    together = engine.generate([_request(index) for index in range(3)])
    alone = engine.generate([_request(1)])
    assert alone[0].image == together[1].image
    assert alone[0].status == "ok"


def test_seed_prompt_and_negative_prompt_each_change_the_image(engine):
    base, seed, prompt, negative = (
        engine.generate([request])[0].image
        for request in (
            _request(0),
            _request(0, seed=99),
            _request(0, prompt=PROMPTS[1]),
            _request(0, negative_prompt="a blue cube"),
        )
    )
    assert len({base, seed, prompt, negative}) == 4


def test_without_guidance_a_negative_prompt_has_no_effect():
    engine = _engine(sampling=SamplingSpec(cfg_scale=1.0))
    plain, negative = (
        engine.generate([request])[0].image for request in (_request(0), _request(0, negative_prompt="x"))
    )
    assert plain == negative


def test_the_decoder_runs_on_the_engines_backend_image_by_image(engine, monkeypatch):
    seen = []
    vae = engine.model.vae
    real = vae.decode
    monkeypatch.setattr(
        vae, "decode", lambda codes, backend: seen.append((len(codes), backend)) or real(codes)
    )
    with torch.inference_mode():
        pixels = engine._decode(torch.zeros(3, vae.sizes.codebook_dim, 2, 2))
    assert pixels.shape == (3, 32, 32, 3)
    assert seen == [(1, engine.backend)] * 3


def test_results_carry_size_latency_and_work(engine):
    results = engine.generate([_request(0), _request(1)])
    for result in results:
        image = Image.open(io.BytesIO(result.image))
        assert image.size == (result.width, result.height) == (256, 256)
        assert image.format == "PNG"
        assert image.mode == "RGB"
        assert np.asarray(image).std() > 0
        parts = result.text_ms + result.sample_ms + result.decode_ms + result.encode_ms
        assert 0 < parts * 2 <= result.total_ms
        assert result.batch_size == 2
        assert result.token_layer_fraction == 1.0
        assert result.keep_ratio == [1.0] * 7
        assert result.flops > 1e9


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
def test_every_format_is_written(image_format):
    engine = _engine(image_format=image_format, quality=80)
    result = engine.generate([_request(0)])[0]
    assert Image.open(io.BytesIO(result.image)).format == image_format.upper()
    assert result.format == image_format


def test_bad_requests_become_error_rows_beside_good_ones(engine):
    results = engine.generate(
        [_request(0, prompt=""), _request(1), _request(2, prompt=None), _request(3, prompt=" \n")]
    )
    assert [result.status for result in results] == ["error", "ok", "error", "error"]
    assert "empty" in results[0].error
    assert "not text" in results[2].error
    assert results[1].image == engine.generate([_request(1)])[0].image


def test_prompts_over_512_tokens_are_cut_and_flagged(engine):
    lengths = (1, 511, 512, 1_000_000)  # bytes, which are this encoder's tokens; the end token comes on top
    short, exact, long, huge = engine.generate(
        [_request(0, sample_id=f"t{length}", prompt="b" * length) for length in lengths]
    )
    assert not short.prompt_truncated
    assert not exact.prompt_truncated
    assert long.prompt_truncated
    assert huge.prompt_truncated
    assert huge.image == long.image


def test_batches_hold_one_schedule_each(engine):
    requests = [_request(index, h_div_w=(1.0, 1.5, 1.04)[index % 3]) for index in range(9)]
    batches = engine.plan_batches(requests, batch_size=4)
    assert [len(batch) for batch in batches] == [4, 2, 3]
    assert [{request.h_div_w for request in batch} for batch in batches[2:]] == [{1.5}]
    assert sorted(r.sample_id for batch in batches for r in batch) == sorted(r.sample_id for r in requests)
    tall = engine.generate(batches[2])
    height, width = (16 * side for side in scale_schedule(1.5, "0.06M")[-1])
    assert {(result.height, result.width) for result in tall} == {(height, width)}


def test_out_of_memory_halves_the_batch_and_is_recorded(monkeypatch):
    engine = _engine(batch_size=8)
    expected = [result.image for result in engine.generate([_request(i) for i in range(7)])]
    inner = engine.generate_pixels
    sizes = []

    def limited(batch, *args):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError
        return inner(batch, *args)

    monkeypatch.setattr(engine, "generate_pixels", limited)
    results = engine.generate([_request(i) for i in range(7)])
    assert [result.image for result in results] == expected
    assert sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    assert engine.describe()["out_of_memory"] == [{"batch_size": 7}, {"batch_size": 3}]
    assert engine.describe()["batch_size"] == 1


def test_an_image_too_large_even_alone_is_an_error_row(monkeypatch):
    engine = _engine()
    monkeypatch.setattr(engine, "generate_pixels", _raise_out_of_memory)
    results = engine.generate([_request(0), _request(1)])
    assert [result.status for result in results] == ["error", "error"]
    assert "out of GPU memory" in results[0].error


def _raise_out_of_memory(*_args):
    raise torch.OutOfMemoryError


def test_logits_that_are_no_numbers_are_an_error_row():
    engine = _engine()
    engine.model.transformer.head.bias[0] = float("nan")
    result = engine.generate([_request(0)])[0]
    assert result.status == "error"
    assert "finite" in result.error


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (SamplingSpec(cfg_scale=(3.0,) * 6), "sampling.cfg_scale: the schedule has 7 scales, but 6"),
        (SamplingSpec(temperature=(1.0,) * 8), "sampling.temperature"),
        (SamplingSpec(cfg_insertion_layer=-3), "sampling.cfg_insertion_layer: -3"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(sampling, message):
    spec = EngineSpec(model=ModelSpec(random_weights=True, architecture=SMALL), sampling=sampling)
    with pytest.raises(ModelSpecError, match=message):
        resolve_settings(spec, "0.06M")


def test_top_k_of_one_is_greedy():
    spec = EngineSpec(sampling=SamplingSpec(top_k=1))
    assert resolve_settings(spec, "0.06M").greedy


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells what happens without a GPU")
def test_a_gpu_that_is_not_there_is_a_clear_error():
    with pytest.raises(ModelSpecError, match="no GPU"):
        resolve_device("cuda")


def test_a_folder_that_is_no_text_encoder_is_refused():
    golden = Path(__file__).parents[1] / "data" / "golden" / "square"
    with pytest.raises(ModelSpecError, match=r"model\.text_encoder"):
        Engine(
            EngineSpec(
                model=ModelSpec(
                    transformer=str(golden / "infinity.pth"),
                    vae=str(golden / "vae.pth"),
                    text_encoder=str(golden),
                )
            ),
            RuntimeSpec(device="cpu"),
        ).setup()
