"""The generator: the same image alone and in any batch; and every batch of one image size."""

import gc
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from toprovar_batch.kernels.ops import PYTORCH
from toprovar_batch.worker.batch_memory import BatchKind, batch_bytes
from toprovar_batch.worker.batching import USABLE
from toprovar_batch.worker.errors import ModelSpecError
from toprovar_batch.worker.generator import Generator, generate_all
from toprovar_batch.worker.infinity.schedule import scale_schedule
from toprovar_batch.worker.pruning.policies.dense import DensePolicy
from toprovar_batch.worker.pruning.policies.specs import DenseSpec, FixedExitSpec, ToprovarSpec
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
from toprovar_batch.worker.workspace import Workspace

SMALL = ArchitectureSpec(depth=2, width=64, num_heads=2, vae_channel_multipliers=(1, 1, 1, 1, 1))
PROMPTS = [
    "a red cube",
    "two blue spheres left of a green cone, under a cloudy sky",
    "立方体 🧊",
    "x",
    "torus",
]


def _generator(**spec):
    model = ModelSpec(random_weights=True, architecture=SMALL)
    given = EngineSpec(model=model, image=ImageSpec(resolution="0.06M"), **spec)
    generator = Generator(resolve(given), RuntimeSpec(device="cpu"))
    generator.setup()
    return generator


@pytest.fixture(scope="module")
def generator():
    return _generator()


def _request(index, negative_prompt=None, h_div_w=1.0):
    return GenerationRequest(f"s{index}", PROMPTS[index % 5], negative_prompt, index, h_div_w)


def _codes(generator, requests):
    """The summed codes of requests that the transformer ran together: equal codes mean equal bits at every scale."""
    return generator.observe(requests, DensePolicy).codes.summed_codes


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
    generator = _generator(sampling=sampling)
    requests = [_request(index, negative_prompt="blurry" if index == 3 else None) for index in range(5)]
    together = _codes(generator, requests)
    reordered = _codes(generator, [requests[4], requests[1], requests[0]])
    for index, request in enumerate(requests):
        assert torch.equal(_codes(generator, [request])[0], together[index])
    assert torch.equal(reordered, together[[4, 1, 0]])


def test_all_requests_are_generated_in_batches_of_one_size_each(generator):
    requests = [_request(index, h_div_w=(1.0, 1.5, 1.04)[index % 3]) for index in range(9)]
    marks = []
    found = list(generate_all(generator, requests, 4, marks.append))
    assert [len(batch) for batch, _ in found] == [3, 3, 3]
    assert sorted(r.sample_id for batch, _ in found for r in batch) == sorted(r.sample_id for r in requests)
    for batch, made in found:
        height, width = (16 * side for side in scale_schedule(batch[0].h_div_w, "0.06M")[-1])
        assert made.pixels.shape == (len(batch), height, width, 3)
        assert len(made.statistics) == len(made.finite) == len(batch)
        phases = (made.times.text, made.times.sample, made.times.decode)
        assert min(phases) > 0
        assert sum(phases) <= made.times.wall
    assert marks == [*range(-1, 7)] * 9


def test_a_batch_of_several_image_sizes_is_refused(generator):
    requests = [_request(0), _request(1, h_div_w=1.04), _request(2, h_div_w=2.0)]
    for run in (generator.generate, lambda batch: generator.observe(batch, DensePolicy)):
        with pytest.raises(ValueError, match="a batch makes images of one size"):
            run(requests)
        with pytest.raises(ValueError, match="at least one request"):
            run([])


@pytest.mark.parametrize("policy", [DenseSpec(), ToprovarSpec(pruning_map=True)], ids=["dense", "toprovar"])
def test_a_batch_that_is_queued_keeps_no_cache_for_the_next_to_wait_for(generator, policy, monkeypatch):
    other, made = generator.with_policy(policy), []
    fresh = other._fresh_runner
    monkeypatch.setattr(other, "_fresh_runner", lambda *args: _remember(made, fresh(*args)))
    gc.collect()
    gc.disable()  # what only a collection frees is there when the next batch asks for memory
    try:
        pending = other.begin([_request(0)])
        assert [runner() for runner in made] == [None]
    finally:
        gc.enable()
    assert pending.result().finite == [True]


def test_what_a_queued_batch_gives_is_its_own(generator, monkeypatch):
    made, fresh = [], generator._fresh_runner
    monkeypatch.setattr(generator, "_fresh_runner", lambda *args: made.append(fresh(*args)) or made[-1])
    pending = generator.begin([_request(0), _request(1)])
    with torch.inference_mode():
        for runner in made:
            runner.finite.fill_(False)
            runner.codes.summed_codes.zero_()
    result = pending.result()
    assert result.finite == [True, True]
    assert np.array_equal(result.pixels[1:], generator.generate([_request(1)]).pixels)


def _remember(made, runner):
    made.append(weakref.ref(runner))
    return runner


def test_another_policy_shares_the_model_and_nothing_else(generator):
    other = generator.with_policy(FixedExitSpec(start_scale=4))
    assert other.model is generator.model
    assert other.spec.policy.name == "fixed_exit"
    assert other.generate([_request(0)]).fractions < [1.0] == generator.generate([_request(0)]).fractions


def test_the_batch_size_follows_from_the_memory_that_setup_found(generator):
    on_gpu = Generator(generator.spec, RuntimeSpec())
    kind = BatchKind.of(generator.spec, 1.0, torch.float32)
    taken = batch_bytes(kind, None, 20)
    on_gpu._loaded = replace(
        generator._loaded, device=torch.device("cuda"), free_bytes=int(1.001 * taken / USABLE)
    )
    assert on_gpu.batch_size == 20
    assert on_gpu.with_policy(FixedExitSpec()).batch_size == 20
    assert on_gpu.with_policy(ToprovarSpec()).batch_size < 20
    assert on_gpu.batch_size_of(2.0) > 20  # its last map is smaller
    with_graphs = replace(on_gpu._loaded, workspace=Workspace(generator.model.transformer, PYTORCH, object()))
    on_gpu._loaded = replace(with_graphs, free_bytes=int(1.001 * batch_bytes(kind, 128, 5) / USABLE))
    assert on_gpu.batch_size == 5


def test_what_is_requested_wins_on_a_gpu_and_a_cpu_takes_one_after_the_other(generator):
    on_gpu = Generator(generator.spec, RuntimeSpec(batch_size=40))
    on_gpu._loaded = replace(generator._loaded, device=torch.device("cuda"), free_bytes=1)
    assert on_gpu.batch_size == on_gpu.batch_size_of(2.0) == 40
    on_gpu._loaded = generator._loaded
    assert on_gpu.batch_size == generator.batch_size == 1


def test_what_was_observed_can_be_decoded(generator):
    requests = [_request(0), _request(1)]
    pixels = generator.decode(generator.observe(requests[:1], DensePolicy))
    assert np.array_equal(pixels, generator.generate(requests).pixels[:1])


def test_nothing_is_loaded_before_setup():
    spec = resolve(EngineSpec(model=ModelSpec(random_weights=True)))
    with pytest.raises(RuntimeError, match="setup"):
        _ = Generator(spec, RuntimeSpec(device="cpu")).model


def test_a_folder_that_is_no_text_encoder_is_refused():
    golden = Path(__file__).parents[1] / "data" / "golden" / "square"
    model = ModelSpec(
        transformer=str(golden / "infinity.pth"), vae=str(golden / "vae.pth"), text_encoder=str(golden)
    )
    generator = Generator(resolve(EngineSpec(model=model)), RuntimeSpec(device="cpu"))
    with pytest.raises(ModelSpecError, match=r"model\.text_encoder"):
        generator.setup()
