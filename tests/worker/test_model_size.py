import pytest
import torch

from toprovar_batch.worker import model_size
from toprovar_batch.worker.errors import ModelSpecError
from toprovar_batch.worker.infinity.parameter_counts import decoder_parameters, transformer_parameters
from toprovar_batch.worker.infinity.transformer import Infinity
from toprovar_batch.worker.infinity.vae import Vae
from toprovar_batch.worker.loaded import load_model
from toprovar_batch.worker.model_size import host_memory, refuse_too_large
from toprovar_batch.worker.presets import PRESETS
from toprovar_batch.worker.resolved import resolve_model
from toprovar_batch.worker.specs import ModelSpec, RuntimeSpec

GB = 10**9


def resolved(preset="tiny", **architecture):
    spec = {"preset": preset, "random_weights": True, "architecture": architecture}
    return resolve_model(ModelSpec.model_validate(spec))


@pytest.mark.parametrize("preset", PRESETS)
def test_parameters_are_counted_as_they_are_built(preset):
    sizes = PRESETS[preset]
    with torch.device("meta"):
        transformer, vae = Infinity(sizes.transformer), Vae(sizes.vae)
    assert transformer_parameters(sizes.transformer) == sum(each.numel() for each in transformer.parameters())
    assert decoder_parameters(sizes.vae) == sum(each.numel() for each in vae.parameters())


@pytest.mark.parametrize(
    ("architecture", "start", "end"),
    [
        ({"depth": 99_999}, "depth: with 99999 the model has", "(preset tiny has 9)"),
        ({"width": 320_000, "depth": 12}, "width: with 320000 the model has", "(preset tiny has 320)"),
        ({"codebook_dim": 10**9}, "codebook_dim: with 1000000000 the model has", "(preset tiny has 32)"),
        ({"vae_base_channels": 320_000}, "vae_base_channels: with 320000 the", "(preset tiny has 32)"),
        (
            {"vae_channel_multipliers": [1, 2, 2, 4, 99_999]},
            "vae_channel_multipliers: with [1, 2, 2, 4, 99999] the model has",
            "(preset tiny has [1, 2, 2, 4, 4])",
        ),
    ],
)
def test_a_model_that_cannot_fit_is_refused_by_the_key_that_makes_it_so(architecture, start, end):
    with pytest.raises(ModelSpecError) as raised:
        refuse_too_large(resolved(**architecture), 2, 288 * GB, "the GPU")
    sentence = str(raised.value)
    assert sentence.startswith(f"model.architecture.{start}")
    assert "and the GPU has 288.0 GB of memory for it; choose a smaller value" in sentence
    assert sentence.endswith(end)


def test_a_preset_that_is_too_large_is_named_itself():
    with pytest.raises(ModelSpecError) as raised:
        refuse_too_large(resolved("infinity-8b"), 4, 16 * GB, "this machine")
    assert str(raised.value).startswith("model.preset: infinity-8b has ")
    assert "choose a smaller preset, or a machine or GPU with more" in str(raised.value)
    refuse_too_large(resolved("infinity-8b"), 2, 80 * GB, "the GPU")


def test_objects_of_many_small_blocks_count_as_well():
    many = resolved(depth=10**6, width=36, num_heads=1, text_width=36)
    with pytest.raises(ModelSpecError, match=r"depth: with 1000000 .* takes 39\.0 GB"):
        refuse_too_large(many, 0, 30 * GB, "this machine")


def test_what_a_container_allows_counts(monkeypatch, tmp_path):
    limits = (tmp_path / "memory.max", tmp_path / "none")
    monkeypatch.setattr(model_size, "_LIMITS", limits)
    limits[0].write_text("max\n")
    whole = host_memory()
    limits[0].write_text("1000000\n")
    assert host_memory() == 1_000_000 < whole


def test_nothing_is_built_of_a_model_that_cannot_fit(monkeypatch):
    monkeypatch.setattr("toprovar_batch.worker.loaded.host_memory", lambda: GB // 100)
    monkeypatch.setattr("toprovar_batch.worker.loaded.build_model", None)
    with pytest.raises(ModelSpecError, match=r"^model\.preset: tiny has .* this machine has 0\.0 GB"):
        load_model(resolved(), RuntimeSpec(device="cpu"))
