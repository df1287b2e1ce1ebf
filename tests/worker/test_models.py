"""From a model's description to modules: presets, files, overrides and what is refused."""

from pathlib import Path

import pytest
import torch

from toprovar_batch.worker.errors import CheckpointError, ModelSpecError
from toprovar_batch.worker.infinity.config import PRESETS, get_preset, resolve_architecture
from toprovar_batch.worker.infinity.transformer import Infinity
from toprovar_batch.worker.models import (
    ModelFiles,
    build_model,
    check_model_files,
    model_files,
    random_transformer,
)
from toprovar_batch.worker.specs import ArchitectureSpec, ModelSpec

CPU = torch.device("cpu")


def _parameters(name):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Infinity(get_preset(name).transformer).parameters())


@pytest.mark.parametrize(
    ("name", "billions"), [("infinity-2b", 2.20), ("infinity-8b", 8.6), ("layer12", 0.125), ("layer48", 9.2)]
)
def test_presets_have_the_size_of_their_name(name, billions):
    assert _parameters(name) / 1e9 == pytest.approx(billions, rel=0.05)


@pytest.mark.parametrize(("name", "hidden"), [("layer32", 8192), ("layer48", 13312), ("infinity-2b", 8192)])
def test_feed_forward_widths_round_halves_to_even(name, hidden):
    assert get_preset(name).transformer.mlp_width == hidden


def test_every_preset_is_consistent():
    for name, preset in PRESETS.items():
        assert resolve_architecture(ModelSpec(preset=name)) == (preset.transformer, preset.vae)


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ModelSpecError, match="did you mean 'infinity-8b'"):
        get_preset("infinity_8b")


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ({"width": 100, "num_heads": 3}, "width"),
        ({"width": 60, "num_heads": 6}, "num_heads"),
        ({"width": 16, "num_heads": 1}, "width"),
        ({"width": 64, "num_heads": 2, "text_width": 640}, "text_width"),
        ({"vae_base_channels": 40}, "vae_base_channels"),
        ({"vae_channel_multipliers": (1, 2)}, "vae_channel_multipliers"),
        ({"spatial_patchify": True}, "vae_channel_multipliers"),
    ],
)
def test_impossible_sizes_name_their_field(override, field):
    with pytest.raises(ModelSpecError, match=f"model.architecture.{field}"):
        resolve_architecture(ModelSpec(architecture=ArchitectureSpec(**override)))


def test_official_presets_name_their_released_files():
    files = model_files(ModelSpec(preset="infinity-2b"))
    assert files.transformer == "hf://FoundationVision/Infinity/infinity_2b_reg.pth"
    assert files.vae == "hf://FoundationVision/Infinity/infinity_vae_d32reg.pth"
    assert files.text_encoder == "google/flan-t5-xl"


def test_the_small_preset_names_files_of_this_package_unless_random_ones_are_asked_for():
    assert model_files(ModelSpec()).vae == "package://worker/reference/weights/vae.safetensors"
    assert model_files(ModelSpec(random_weights=True)) == ModelFiles(None, None, None)


def test_shipped_files_that_are_not_installed_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("toprovar_batch.worker.fetch._PACKAGE_FOLDER", tmp_path)
    with pytest.raises(CheckpointError, match=r"package://worker/\S+: not part of this installation"):
        check_model_files(ModelSpec())
    assert len(check_model_files(ModelSpec(random_weights=True))) == 3


def test_files_of_a_preset_are_not_taken_for_other_sizes():
    for sizes, part in (
        (ArchitectureSpec(depth=2), "transformer"),
        (ArchitectureSpec(vae_base_channels=64), "vae"),
    ):
        with pytest.raises(
            ModelSpecError, match=rf"model\.{part}: the file of preset 'tiny' has other sizes"
        ):
            model_files(ModelSpec(architecture=sizes))
    assert model_files(ModelSpec(architecture=ArchitectureSpec(depth=2), transformer="my.pth")).vae


def test_named_files_take_the_place_of_the_presets():
    files = model_files(ModelSpec(preset="infinity-2b", vae="my/vae.pth"))
    assert files.vae == "my/vae.pth"
    assert files.text_encoder == "google/flan-t5-xl"


def test_random_weights_and_files_exclude_each_other():
    with pytest.raises(ModelSpecError, match="random_weights"):
        model_files(ModelSpec(random_weights=True, vae="x.pth"))


def test_a_preset_without_released_files_asks_for_them():
    with pytest.raises(ModelSpecError, match=r"model\.transformer: preset 'layer12'"):
        model_files(ModelSpec(preset="layer12"))


def test_missing_local_files_are_named(tmp_path):
    spec = ModelSpec(preset="infinity-2b", transformer=str(tmp_path / "gone.pth"))
    with pytest.raises(ModelSpecError, match=r"model\.transformer: .*gone\.pth: no such file"):
        check_model_files(spec)


def test_a_foreign_local_checkpoint_is_refused_before_anything_is_loaded():
    golden = Path(__file__).parents[1] / "data" / "golden"
    sizes = ArchitectureSpec(
        depth=4, width=64, num_heads=2, codebook_dim=16, vae_channel_multipliers=(1, 1, 1, 2, 2)
    )
    vae = str(golden / "square" / "vae.pth")
    good = {
        "transformer": str(golden / "square" / "infinity.pth"),
        "vae": vae,
        "text_encoder": "google/flan-t5-xl",
    }
    assert len(check_model_files(ModelSpec(architecture=sizes, **good))) == 3
    for part, file, message in (
        ("transformer", str(golden / "patchify"), r"cfg_uncond: expected shape \(512, 256\)"),
        ("transformer", vae, r"cfg_uncond: missing"),
        ("vae", str(golden / "patchify" / "vae.pth"), r"decoder\.\S+: expected shape"),
    ):
        with pytest.raises(CheckpointError, match=message):
            check_model_files(ModelSpec(architecture=sizes, **(good | {part: file})))


def test_random_weights_depend_on_their_seed_alone():
    sizes = resolve_architecture(
        ModelSpec(architecture=ArchitectureSpec(depth=1, width=64, num_heads=2, text_width=128))
    )[0]
    first, again, other = (random_transformer(sizes, seed, CPU, torch.float32) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.head.weight, other.head.weight)


def test_a_text_encoder_of_another_width_is_refused():
    spec = ModelSpec(random_weights=True, architecture=ArchitectureSpec(text_width=512))
    with pytest.raises(ModelSpecError, match=r"model\.text_encoder: its width is 256.*512"):
        build_model(spec, CPU, torch.float32)
