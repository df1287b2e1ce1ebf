"""Every form a checkpoint comes in, and what is wrong with the ones that do not fit."""

import json
import pickle
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from toprovar_batch.worker.errors import CheckpointError
from toprovar_batch.worker.infinity.checkpoint import (
    normalize_transformer,
    normalize_vae,
    read_state_dict,
    save_plain,
    save_shards,
)
from toprovar_batch.worker.infinity.config import TransformerArchitecture, VaeArchitecture
from toprovar_batch.worker.models import load_transformer, load_vae

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
CPU = torch.device("cpu")
SQUARE = TransformerArchitecture(depth=4, width=64, num_heads=2, text_width=256, bits_per_token=16)
PATCHIFY = TransformerArchitecture(depth=4, width=96, num_heads=3, text_width=128, bits_per_token=56)
SQUARE_VAE = VaeArchitecture(16, 32, (1, 1, 1, 2, 2), spatial_patchify=False)
PATCHIFY_VAE = VaeArchitecture(14, 32, (1, 1, 2, 2), spatial_patchify=True)


def _load(path, sizes=SQUARE):
    return load_transformer(sizes, path, CPU, torch.float32)


def _official():
    return torch.load(GOLDEN / "square" / "infinity.pth", weights_only=True)


def _same(model, other):
    return all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_shards_with_an_index_load_as_one(tmp_path):
    model = _load(GOLDEN / "patchify", PATCHIFY)
    state = read_state_dict(GOLDEN / "patchify")
    names = sorted(state)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: state[name].contiguous() for name in part}, tmp_path / file)
    weight_map = {name: file for file, part in halves.items() for name in part}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert _same(model, _load(tmp_path, PATCHIFY))


@pytest.mark.parametrize(
    "wrapped", [["trainer", "gpt_fsdp"], ["trainer", "gpt_wo_ddp"], ["gpt_fsdp"], ["model"]]
)
def test_training_checkpoints_are_unwrapped(tmp_path, wrapped):
    content = {**_official()}
    for name in reversed(wrapped):
        content = {name: content, "step": 7}
    torch.save(content, tmp_path / "w.pth")
    assert _same(_load(GOLDEN / "square" / "infinity.pth"), _load(tmp_path / "w.pth"))


def test_a_checkpoint_of_the_trainer_without_fsdp_gives_its_transformer(tmp_path):
    trainer = {
        "config": {"label_smooth": 0.0},
        "vae_local": {"encoder.conv_in.weight": torch.zeros(2)},
        "gpt_fsdp": None,
        "gpt_wo_ddp": _official(),
        "gpt_opt": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": []},
    }
    torch.save({"args": {"seed": 1}, "epoch": 3, "iter": 7, "trainer": trainer}, tmp_path / "w.pth")
    assert _same(_load(GOLDEN / "square" / "infinity.pth"), _load(tmp_path / "w.pth"))


class _Code:
    def __reduce__(self):
        return print, ("this ran",)


@pytest.mark.parametrize("form", ["zip", "before zip", "pickle 2", "pickle 4"])
def test_a_file_with_code_is_refused_as_such_and_not_run(tmp_path, capfd, form):
    path, content = tmp_path / "w.pth", {"model": _Code(), "x": torch.zeros(2) if "zip" in form else 0}
    if "zip" in form:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    else:
        path.write_bytes(pickle.dumps(content, protocol=int(form[-1])))
    with pytest.raises(CheckpointError, match=r"w\.pth: contains code( \([\w.]+\))?, refused; ") as caught:
        _load(path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_old_torch_files_without_zip_load(tmp_path):
    torch.save(_official(), tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert _same(_load(GOLDEN / "square" / "infinity.pth"), _load(tmp_path / "w.pth"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_any_stored_precision_is_converted(tmp_path, dtype):
    torch.save({name: tensor.to(dtype) for name, tensor in _official().items()}, tmp_path / "w.pth")
    assert {parameter.dtype for parameter in _load(tmp_path / "w.pth").parameters()} == {torch.float32}


def test_low_precision_leaves_the_conditioning_in_float32():
    model = load_transformer(SQUARE, GOLDEN / "square" / "infinity.pth", CPU, torch.bfloat16)
    assert model.blocks[0].ffn.fc1.weight.dtype == torch.bfloat16
    for kept in (
        model.head.weight,
        model.shared_ada_lin[1].weight,
        model.blocks[0].ada_gss,
        model.cfg_uncond,
    ):
        assert kept.dtype == torch.float32


def test_the_plain_form_loads_back(tmp_path):
    model = _load(GOLDEN / "square" / "infinity.pth")
    save_plain(model, tmp_path / "plain.safetensors")
    assert _same(model, _load(tmp_path / "plain.safetensors"))
    vae = load_vae(SQUARE_VAE, GOLDEN / "square" / "vae.pth", CPU, torch.float32, with_encoder=True)
    save_plain(vae, tmp_path / "vae.safetensors")
    again = load_vae(SQUARE_VAE, tmp_path / "vae.safetensors", CPU, torch.float32, with_encoder=True)
    assert _same(vae, again)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["plain.safetensors", "vae.safetensors"]


@pytest.mark.parametrize("max_bytes", [1, 200_000, 1 << 30])
def test_shards_of_our_own_load_back(tmp_path, max_bytes):
    model = _load(GOLDEN / "square" / "infinity.pth")
    save_shards(model, tmp_path, max_bytes)
    assert _same(model, _load(tmp_path))
    largest = max(parameter.nbytes for parameter in model.parameters())
    header = 20_000
    for file in tmp_path.glob("*.safetensors"):
        assert file.stat().st_size <= max(max_bytes, largest) + header


def test_both_vae_namings_give_the_same_names():
    square, patchify = (
        normalize_vae(torch.load(GOLDEN / folder / "vae.pth", weights_only=True)["vae"])
        for folder in ("square", "patchify")
    )
    assert "decoder.up.1.upsample.conv.weight" in square
    assert "decoder.up.1.upsample.conv.weight" in patchify
    # The square one has a level more, and its widths change elsewhere.
    assert {name for name in patchify if "nin_shortcut" not in name} < set(square)


@pytest.mark.parametrize(("folder", "sizes"), [("square", SQUARE_VAE), ("patchify", PATCHIFY_VAE)])
def test_the_encoder_halves_as_often_as_the_decoder_doubles(folder, sizes):
    vae = load_vae(sizes, GOLDEN / folder / "vae.pth", CPU, torch.float32, with_encoder=True)
    image = torch.rand(1, 3, 96, 64) * 2 - 1
    features = vae.encoder(image)
    factor = 2 ** (len(sizes.channel_multipliers) - 1)
    assert features.shape == (1, sizes.codebook_dim, 96 // factor, 64 // factor)
    assert vae.decode(features).shape == image.shape


def test_blocks_are_numbered_over_their_chunks():
    names = normalize_transformer(
        {f"block_chunks.{chunk}.module.{i}.x": torch.zeros(1) for chunk in range(12) for i in range(2)}
        | {"block_chunks.0.module.0.sa.zero_k_bias": torch.zeros(1)}
    )
    assert sorted(names) == sorted(f"blocks.{layer}.x" for layer in range(24))


@pytest.mark.parametrize(
    ("present", "missing"),
    [
        ([(0, 0), (0, 2)], "block_chunks.0.module.1"),
        ([(0, 0), (2, 0)], "block_chunks.1.module.0"),
        ([(1, 0)], "block_chunks.0.module.0"),
    ],
)
def test_a_gap_between_the_blocks_is_named(present, missing):
    with pytest.raises(CheckpointError, match=f"^{missing}: missing"):
        normalize_transformer({f"block_chunks.{chunk}.module.{i}.x": torch.zeros(1) for chunk, i in present})


@pytest.mark.parametrize(("rows", "kept"), [(100, 100), (600, 512)])
def test_unconditional_features_are_cut_or_padded(tmp_path, rows, kept):
    state = _official()
    state["cfg_uncond"] = torch.ones(rows, 256)
    torch.save(state, tmp_path / "w.pth")
    loaded = _load(tmp_path / "w.pth").cfg_uncond
    assert loaded.shape == (512, 256)
    assert loaded.sum() == kept * 256


def _drop(state):
    del state["block_chunks.1.module.0.sa.mat_qkv.weight"]


def _add(state):
    state["head.extra"] = torch.zeros(1)


def _misshape(state):
    state["block_chunks.1.module.1.sa.mat_qkv.weight"] = torch.zeros(192, 32)


def _integers(state):
    state["head.weight"] = state["head.weight"].to(torch.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop, r"blocks\.2\.sa\.mat_qkv\.weight: missing"),
        (_add, r"head\.extra: unexpected"),
        (_misshape, r"blocks\.3\.sa\.mat_qkv\.weight: expected shape \(192, 64\), got \(192, 32\)"),
        (_integers, r"head\.weight: expected floating-point"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(tmp_path, change, message):
    state = _official()
    change(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=message):
        _load(tmp_path / "w.pth")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_no_finite_number_is_named(tmp_path, number):
    state = _official()
    state["block_chunks.1.module.1.sa.mat_qkv.weight"][5, 7] = number
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(
        CheckpointError, match=r"^blocks\.3\.sa\.mat_qkv\.weight: .* not finite in float32, in .*w\.pth"
    ):
        _load(tmp_path / "w.pth")


def test_a_weight_of_the_vae_that_is_no_finite_number_is_named(tmp_path):
    vae = load_vae(SQUARE_VAE, GOLDEN / "square" / "vae.pth", CPU, torch.float32)
    vae.decoder.conv_out.bias[0] = float("nan")
    save_plain(vae, tmp_path / "vae.safetensors")
    with pytest.raises(CheckpointError, match=r"^decoder\.conv_out\.bias: holds numbers that are not finite"):
        load_vae(SQUARE_VAE, tmp_path / "vae.safetensors", CPU, torch.float32)


@pytest.mark.parametrize(("dtype", "fits"), [(torch.bfloat16, True), (torch.float16, False)])
def test_a_weight_that_a_dtype_cannot_hold_is_named(tmp_path, dtype, fits):
    state = _official()
    name = "block_chunks.0.module.0.sa.mat_qkv.weight"
    state[name] = state[name].float()
    state[name][0, 0] = 1e6
    torch.save(state, tmp_path / "w.pth")
    expected = nullcontext() if fits else pytest.raises(CheckpointError, match="not finite in float16")
    with expected:
        load_transformer(SQUARE, tmp_path / "w.pth", CPU, dtype)


def _truncated(folder):
    shutil.copy(GOLDEN / "square" / "infinity.pth", folder / "w.pth")
    with (folder / "w.pth").open("r+b") as file:
        file.truncate(500_000)
    return folder / "w.pth"


def _truncated_safetensors(folder):
    save_file({"a": torch.zeros(1000)}, folder / "w.safetensors")
    with (folder / "w.safetensors").open("r+b") as file:
        file.truncate(700)
    return folder / "w.safetensors"


def _text(folder):
    (folder / "w.pth").write_text("not weights")
    return folder / "w.pth"


def _empty(folder):
    (folder / "w.pth").touch()
    return folder / "w.pth"


class _Foreign:
    """Anything but a tensor: loading it would have to execute its reconstruction."""


def _pickled_object(folder):
    torch.save({"a": _Foreign()}, folder / "w.pth")
    return folder / "w.pth"


def _no_tensors(folder):
    torch.save({"step": 7}, folder / "w.pth")
    return folder / "w.pth"


def _no_index(folder):
    return folder


def _missing_shard(folder):
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "gone.safetensors"}})
    )
    return folder


def _numbered(folder):
    torch.save({0: torch.zeros(1), 1: torch.zeros(2)}, folder / "w.pth")
    return folder / "w.pth"


def _index_of_numbers(folder):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": 3}}))
    return folder


def _missing(folder):
    return folder / "nowhere.pth"


@pytest.mark.parametrize(
    "make",
    [
        _truncated,
        _truncated_safetensors,
        _text,
        _empty,
        _pickled_object,
        _no_tensors,
        _no_index,
        _missing_shard,
        _missing,
        _numbered,
        _index_of_numbers,
    ],
)
def test_an_unusable_file_is_one_clear_sentence(tmp_path, make):
    path = make(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        read_state_dict(path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_released_8b_index_of_another_model_is_refused_by_tensor():
    with pytest.raises(CheckpointError, match="expected shape"):
        _load(GOLDEN / "patchify", SQUARE)
