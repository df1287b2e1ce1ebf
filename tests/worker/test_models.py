"""From a model's description to modules: presets, files, overrides and what is refused."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from toprovar_batch.worker.errors import CheckpointError, ModelSpecError
from toprovar_batch.worker.infinity.transformer import Infinity
from toprovar_batch.worker.model_files import check_model_files
from toprovar_batch.worker.models import build_model, random_transformer
from toprovar_batch.worker.presets import get_preset
from toprovar_batch.worker.resolved import resolve_model
from toprovar_batch.worker.specs import ArchitectureSpec, ModelSpec

CPU = torch.device("cpu")


def _model(**spec):
    return resolve_model(ModelSpec(**spec))


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


def test_shipped_files_that_are_not_installed_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("toprovar_batch.worker.fetch._PACKAGE_FOLDER", tmp_path)
    with pytest.raises(CheckpointError, match=r"package://worker/\S+: not part of this installation"):
        check_model_files(_model())
    assert len(check_model_files(_model(random_weights=True))) == 3


def test_missing_local_files_are_named(tmp_path):
    model = _model(preset="infinity-2b", transformer=str(tmp_path / "gone.pth"))
    with pytest.raises(ModelSpecError, match=r"model\.transformer: .*gone\.pth: no such file"):
        check_model_files(model)


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
    assert len(check_model_files(_model(architecture=sizes, **good))) == 3
    for part, file, message in (
        ("transformer", str(golden / "patchify"), r"cfg_uncond: expected shape \(512, 256\)"),
        ("transformer", vae, r"cfg_uncond: missing"),
        ("vae", str(golden / "patchify" / "vae.pth"), r"decoder\.\S+: expected shape"),
    ):
        with pytest.raises(CheckpointError, match=message):
            check_model_files(_model(architecture=sizes, **(good | {part: file})))


def test_random_weights_depend_on_their_seed_alone():
    architecture = ArchitectureSpec(depth=1, width=64, num_heads=2, text_width=128)
    sizes = _model(random_weights=True, architecture=architecture).transformer
    first, again, other = (random_transformer(sizes, seed, CPU, torch.float32) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.head.weight, other.head.weight)


def test_a_text_encoder_of_another_width_is_refused():
    model = _model(random_weights=True, architecture=ArchitectureSpec(text_width=512))
    with pytest.raises(ModelSpecError, match=r"model\.text_encoder: its width is 256.*512"):
        build_model(model, CPU, torch.float32)


def test_a_folder_that_is_no_text_encoder_names_its_field(tmp_path):
    model = _model(text_encoder=str(tmp_path))
    for check in (check_model_files, lambda model: build_model(model, CPU, torch.float32)):
        with pytest.raises(ModelSpecError, match=rf"^model\.text_encoder: .*{tmp_path.name}"):
            check(model)


def test_a_model_is_built_without_the_models_of_transformers_and_the_compiler_of_pytorch():
    code = (
        "import sys, torch; from toprovar_batch.worker.models import build_model\n"
        "from toprovar_batch.worker.resolved import resolve_model; from toprovar_batch.worker.specs import ModelSpec\n"
        "model = build_model(resolve_model(ModelSpec()), torch.device('cpu'), torch.float32)\n"
        "model.text_encoder.encode(['a red cube', 'a'])\n"
        "heavy = {'transformers.modeling_utils', 'transformers.masking_utils', 'torch._dynamo'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
