"""From a spec to one with nothing left to the preset: sizes, files, settings, and what is refused."""

import pickle
import subprocess
import sys

import pytest

from toprovar_batch.worker.errors import ModelSpecError
from toprovar_batch.worker.presets import PRESETS, get_preset
from toprovar_batch.worker.pruning.policies.specs import FixedExitSpec, ToprovarSpec
from toprovar_batch.worker.resolved import ModelFiles, resolve, resolve_model
from toprovar_batch.worker.specs import ArchitectureSpec, EngineSpec, ImageSpec, ModelSpec, SamplingSpec


def _files(**spec):
    return resolve_model(ModelSpec(**spec)).files


def test_every_preset_is_consistent():
    for name, preset in PRESETS.items():
        model = resolve_model(ModelSpec(preset=name, random_weights=True))
        assert (model.transformer, model.vae) == (preset.transformer, preset.vae)


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
    with pytest.raises(ModelSpecError, match=rf"^model\.architecture\.{field}: "):
        resolve_model(ModelSpec(architecture=ArchitectureSpec(**override)))


def test_official_presets_name_their_released_files():
    assert _files(preset="infinity-2b") == ModelFiles(
        "hf://FoundationVision/Infinity/infinity_2b_reg.pth",
        "hf://FoundationVision/Infinity/infinity_vae_d32reg.pth",
        "google/flan-t5-xl",
    )


def test_the_small_preset_names_files_of_this_package_unless_random_ones_are_asked_for():
    assert _files().vae == "package://worker/reference/weights/vae.safetensors"
    assert _files(random_weights=True) == ModelFiles(None, None, None)


def test_files_of_a_preset_are_not_taken_for_other_sizes():
    for sizes, part in (
        (ArchitectureSpec(depth=2), "transformer"),
        (ArchitectureSpec(vae_base_channels=64), "vae"),
    ):
        with pytest.raises(
            ModelSpecError, match=rf"model\.{part}: the file of preset 'tiny' has other sizes"
        ):
            _files(architecture=sizes)
    assert _files(architecture=ArchitectureSpec(depth=2), transformer="my.pth").vae


def test_named_files_take_the_place_of_the_presets():
    files = _files(preset="infinity-2b", vae="my/vae.pth")
    assert files.vae == "my/vae.pth"
    assert files.text_encoder == "google/flan-t5-xl"


def test_random_weights_and_files_exclude_each_other():
    with pytest.raises(ModelSpecError, match="random_weights"):
        _files(random_weights=True, vae="x.pth")


def test_a_preset_without_released_files_asks_for_them():
    with pytest.raises(ModelSpecError, match=r"model\.transformer: preset 'layer12'"):
        _files(preset="layer12")


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (SamplingSpec(cfg_scale=(3.0,) * 6), "sampling.cfg_scale: the schedule has 7 scales, but 6"),
        (SamplingSpec(temperature=(1.0,) * 8), "sampling.temperature"),
        (SamplingSpec(cfg_insertion_layer=-10), "sampling.cfg_insertion_layer: -10"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(sampling, message):
    with pytest.raises(ModelSpecError, match=message):
        resolve(EngineSpec(sampling=sampling, image=ImageSpec(resolution="0.06M")))


def test_settings_have_one_value_per_scale_of_the_presets_resolution():
    settings = resolve(EngineSpec(sampling=SamplingSpec(temperature=0.5))).settings
    assert settings.cfg_scale == (3.0,) * 10
    assert settings.temperature == (0.5,) * 10


def test_top_k_of_one_is_greedy():
    assert resolve(EngineSpec(sampling=SamplingSpec(top_k=1))).settings.greedy
    assert not resolve(EngineSpec()).settings.greedy


def test_what_is_written_out_resolves_to_itself():
    for spec in (
        EngineSpec(policy=ToprovarSpec()),
        EngineSpec(
            model=ModelSpec(random_weights=True, architecture=ArchitectureSpec(depth=2)),
            sampling=SamplingSpec(cfg_scale=2.0),
            image=ImageSpec(resolution="0.06M", h_div_w=1.5),
        ),
        EngineSpec(image=ImageSpec(format="jpeg", quality=80)),
    ):
        resolved = resolve(spec)
        assert resolve(resolved.written_out) == resolved
        written_out = resolved.written_out.model_dump(include={"sampling", "image"})
        left_open = [key for part in written_out.values() for key, value in part.items() if value is None]
        assert left_open == ([] if spec.image.format == "jpeg" else ["subsampling"])


def test_another_policy_changes_nothing_else():
    spec = resolve(EngineSpec())
    other = spec.with_policy(FixedExitSpec())
    assert other.policy == FixedExitSpec()
    assert other.with_policy(spec.policy) == spec


def test_a_resolved_spec_can_be_sent_to_another_process():
    spec = resolve(EngineSpec(policy=ToprovarSpec()))
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_nothing_that_resolves_imports_torch():
    code = "import sys, toprovar_batch.worker.resolved; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
