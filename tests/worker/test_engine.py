"""The engine: an answer to every request, and errors that stay with theirs."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from toprovar_batch.worker.engine import Engine
from toprovar_batch.worker.generated import GeneratedBatch, PhaseTimes
from toprovar_batch.worker.generator import Generator
from toprovar_batch.worker.images import encode_images
from toprovar_batch.worker.request import GenerationRequest
from toprovar_batch.worker.resolved import resolve
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
    spec.setdefault("model", ModelSpec(random_weights=True, architecture=SMALL))
    image = ImageSpec(resolution="0.06M", format=image_format, quality=quality)
    given = EngineSpec(image=image, **spec)
    engine = Engine(Generator(resolve(given), RuntimeSpec(device="cpu", batch_size=batch_size)))
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
    seen, generator = [], engine.generator
    vae = generator.model.vae
    real = vae.decode_checked
    monkeypatch.setattr(
        vae, "decode_checked", lambda codes, backend: seen.append((len(codes), backend)) or real(codes)
    )
    with torch.inference_mode():
        pixels, finite = generator._ready.decoder.decode(torch.zeros(3, vae.sizes.codebook_dim, 2, 2))
    assert pixels.shape == (3, 32, 32, 3)
    assert finite.tolist() == [True] * 3
    assert seen == [(1, generator._ready.backend)] * 3


def test_results_carry_size_latency_and_work(engine):
    results = engine.generate([_request(0), _request(1)])
    for result in results:
        image = Image.open(io.BytesIO(result.image))
        assert image.size == (result.width, result.height) == (256, 256)
        assert image.format == "PNG"
        assert image.mode == "RGB"
        assert np.asarray(image).std() > 0
        measured = result.statistics
        parts = measured.text_ms + measured.sample_ms + measured.decode_ms + measured.encode_ms
        assert 0 < parts * 2 <= measured.total_ms
        assert measured.batch_size == 2
        assert measured.token_layer_fraction == 1.0
        assert measured.keep_ratio == (1.0,) * 7
        assert measured.flops > 1e9


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
def test_every_format_is_written(image_format):
    engine = _engine(image_format=image_format, quality=80)
    result = engine.generate([_request(0)])[0]
    assert Image.open(io.BytesIO(result.image)).format == image_format.upper()
    assert result.format == image_format


def test_a_jpeg_of_high_quality_keeps_its_colours_at_every_pixel():
    pixels = np.full((1, 64, 64, 3), 255, np.uint8)
    pixels[:, :, :31] = (0, 0, 255)

    def error(**settings):
        (encoded,) = encode_images(pixels, ImageSpec(format="jpeg", **settings))
        return abs(np.asarray(Image.open(io.BytesIO(encoded))).astype(int) - pixels[0]).max()

    assert error() == error(subsampling="4:4:4") <= 13
    assert error(subsampling="4:2:0") >= 43
    assert error(quality=94) >= 43
    assert error(quality=94, subsampling="4:4:4") <= 13


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
    cut = [result.statistics.prompt_truncated for result in (short, exact, long, huge)]
    assert cut == [False, False, True, True]
    assert huge.image == long.image


def test_out_of_memory_halves_the_batch_and_is_recorded(monkeypatch):
    engine = _engine(batch_size=8)
    expected = [result.image for result in engine.generate([_request(i) for i in range(7)])]
    inner = engine.generator.begin
    sizes, before = [], engine.describe()

    def limited(batch, *args):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError
        return inner(batch, *args)

    monkeypatch.setattr(engine.generator, "begin", limited)
    results = engine.generate([_request(i) for i in range(7)])
    assert [result.image for result in results] == expected
    assert sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    assert engine.usage()["out_of_memory"] == [{"batch_size": 7}, {"batch_size": 3}]
    assert engine.usage()["batch_limit"] == 1
    assert engine.describe() == before
    assert [len(batch) for batch in engine.plan_batches([_request(i) for i in range(3)], 2)] == [1, 1, 1]


def test_an_image_too_large_even_alone_is_an_error_row(monkeypatch):
    engine = _engine()
    monkeypatch.setattr(engine.generator, "begin", _raise_out_of_memory)
    results = engine.generate([_request(0), _request(1)])
    assert [result.status for result in results] == ["error", "error"]
    assert "out of GPU memory" in results[0].error


def _raise_out_of_memory(*_args):
    raise torch.OutOfMemoryError


def test_logits_that_are_no_numbers_are_an_error_row():
    engine = _engine()
    engine.generator.model.transformer.head.bias[0] = float("nan")
    long, short = engine.generate([_request(0, prompt="b" * 600), _request(1)])
    assert (long.status, long.image, short.status) == ("error", None, "error")
    assert "finite" in long.error
    assert [result.statistics.prompt_truncated for result in (long, short)] == [True, False]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_pixels_that_are_no_numbers_are_an_error_row_of_their_image(monkeypatch, number):
    engine = _engine()
    decoder, calls = engine.generator.model.vae.decoder.forward, []

    def decode(*arguments):
        pixels = decoder(*arguments)
        calls.append(pixels.shape)
        if len(calls) == 2:
            pixels[:, 1, 3, 4] = number
        return pixels

    monkeypatch.setattr(engine.generator.model.vae.decoder, "forward", decode)
    results = engine.generate([_request(index) for index in range(3)])
    assert [result.status for result in results] == ["ok", "error", "ok"]
    assert (results[1].image, "not finite" in results[1].error) == (None, True)


def _decoder_of_one_colour(engine):
    for name, parameter in engine.generator.model.vae.decoder.named_parameters():
        if name.startswith("conv_out"):
            parameter.zero_()


def test_batches_of_flat_pictures_are_counted():
    engine = _engine()
    engine.generate([_request(0), _request(1)])
    assert engine.usage()["flat_batches"] == 0
    _decoder_of_one_colour(engine)
    results = engine.generate([_request(0), _request(1)])
    assert [result.status for result in results] == ["ok", "ok"]
    assert engine.usage()["flat_batches"] == 1


def test_a_batch_with_one_picture_that_is_not_flat_is_not_suspicious():
    flat, last = np.full((4, 4, 3), 7, np.uint8), np.full((4, 4, 3), 7, np.uint8)
    last[3, 3, 0] = 8

    def is_flat(*images, finite=(True, True)):
        return GeneratedBatch(np.stack(images), list(finite), [], PhaseTimes()).is_flat

    assert is_flat(flat, flat)
    assert not is_flat(flat, last)
    assert is_flat(flat, last, finite=(True, False))
    assert not is_flat(flat, flat, finite=(False, False))


def test_a_batch_of_several_image_sizes_is_refused_before_anything_is_made(engine):
    requests = [_request(0, prompt=""), _request(1, h_div_w=1.02), _request(2, h_div_w=1.5)]
    with pytest.raises(ValueError, match=r"h_div_w is 1 of sample s0 and 1\.5 of sample s2"):
        engine.generate(requests)
    assert engine.generate([]) == []


def test_equal_engines_have_equal_descriptions_whatever_they_have_done():
    first, second = _engine(), _engine()
    first.generate([_request(0)])
    assert first.describe() == second.describe()
    assert first.describe() != _engine(model=ModelSpec(random_weights=True)).describe()
    assert first.usage()["load_seconds"] >= 0
