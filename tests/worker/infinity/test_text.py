"""What is accepted as a text encoder, and what it gives."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    ByT5Tokenizer,
    MT5Config,
    MT5EncoderModel,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from toprovar_batch.worker.errors import CheckpointError, ModelSpecError
from toprovar_batch.worker.infinity.config import T5Architecture
from toprovar_batch.worker.infinity.encoder_folder import check_local_encoder
from toprovar_batch.worker.infinity.encoder_weights import load_encoder, read_config
from toprovar_batch.worker.infinity.text import TextEncoder
from toprovar_batch.worker.infinity.tokenizer import TransformersTokenizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small T5 encoder with a byte tokenizer, as transformers saves it."""
    folder = tmp_path_factory.mktemp("t5")
    torch.manual_seed(0)  # made once, whichever test comes first
    config = T5Config(
        d_model=32, d_kv=8, d_ff=16, num_layers=1, num_heads=4, vocab_size=384, dropout_rate=0.0
    )
    T5EncoderModel(config).save_pretrained(folder)
    ByT5Tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "encoder")


def _load(folder):
    return TextEncoder.load(str(folder), CPU, torch.float32)


def _edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_a_saved_encoder_gives_each_prompt_its_own_tokens(folder):
    encoder = _load(folder)
    assert encoder.width == 32
    short, long = encoder.encode(["ab", "abcdef"])
    assert short.features.shape == (3, 32)
    assert long.features.shape == (7, 32)
    assert torch.allclose(encoder.encode(["ab"])[0].features, short.features, atol=1e-5)
    check_local_encoder(folder, 32)


KINDS = {
    "t5": (T5Config, T5EncoderModel),
    "mt5": (MT5Config, MT5EncoderModel),
    "umt5": (UMT5Config, UMT5EncoderModel),
}


def _save(folder, kind, projection, dtype, **saved_as):
    """A small encoder of a kind, and the one that transformers loads from its folder."""
    make_config, make_model = KINDS[kind]
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 4, "vocab_size": 384}
    torch.manual_seed(0)
    make_model(make_config(**sizes, feed_forward_proj=projection)).save_pretrained(folder, **saved_as)
    ByT5Tokenizer().save_pretrained(folder)
    return make_model.from_pretrained(folder, dtype=dtype).eval()


@pytest.mark.parametrize(
    ("kind", "projection", "dtype"),
    [
        ("t5", "relu", torch.float32),
        ("t5", "gated-gelu", torch.float32),
        ("t5", "gated-gelu", torch.bfloat16),
        ("t5", "gated-gelu", torch.float16),
        ("mt5", "gated-silu", torch.float32),
        ("umt5", "gated-gelu", torch.float32),
    ],
)
@pytest.mark.parametrize(
    "prompts", [["ab" * 70, "abcdef", ""], ["abc", "def"]], ids=["padded", "of one length"]
)
def test_the_features_are_those_of_transformers_to_the_bit(tmp_path, kind, projection, dtype, prompts):
    theirs = _save(tmp_path, kind, projection, dtype)
    ours, lacking = load_encoder(str(tmp_path), read_config(str(tmp_path)), CPU, dtype)
    assert lacking == []
    found = TextEncoder(TransformersTokenizer(ByT5Tokenizer()), ours, CPU).encode(prompts)
    batch = ByT5Tokenizer()(prompts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        hidden = theirs(**batch).last_hidden_state.float()
    for row, text in zip(hidden, found, strict=True):
        assert torch.equal(row[: len(text.features)], text.features)


def test_an_encoder_loads_from_any_form_of_its_files(tmp_path):
    theirs = _save(tmp_path / "shards", "t5", "relu", torch.float32, max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    whole = {"decoder.final_layer_norm.weight": torch.ones(32), **theirs.state_dict()}
    del whole["encoder.embed_tokens.weight"]
    for name, state in (
        ("torch", whole),
        ("with a head", {f"transformer.{key}": whole[key] for key in whole}),
    ):
        shutil.copytree(tmp_path / "shards", tmp_path / name, ignore=shutil.ignore_patterns("*.safetensors*"))
        torch.save(state, tmp_path / name / "pytorch_model.bin")
    first, *others = (
        _load(tmp_path / name).encode(["a red cube"])[0].features
        for name in ("shards", "torch", "with a head")
    )
    assert all(torch.equal(first, other) for other in others)


def test_shards_of_the_decoder_alone_are_not_looked_at(tmp_path):
    _save(tmp_path, "t5", "relu", torch.float32, max_shard_size="20KB")
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["decoder.final_layer_norm.weight"] = "gone.safetensors"
    index.write_text(json.dumps(content))
    assert _load(tmp_path).width == 32


def test_an_unknown_activation_is_refused(folder):
    _edit_config(folder, feed_forward_proj="gated-mish")
    with pytest.raises(ModelSpecError, match=r"feed_forward_proj: 'gated-mish' is not known"):
        _load(folder)


def test_a_config_with_more_layers_than_weights_is_refused(folder):
    _edit_config(folder, num_layers=3)
    with pytest.raises(ModelSpecError, match="its weights do not fit its config: encoder"):
        _load(folder)


def test_a_folder_without_its_tokenizer_is_refused(folder):
    for file in folder.glob("*token*"):
        file.unlink()
    for check in (_load, lambda path: check_local_encoder(path, 32)):
        with pytest.raises(
            ModelSpecError, match=r"its tokenizer is missing \(tokenizer.json or spiece.model\)"
        ):
            check(folder)


def test_another_kind_of_model_is_refused(folder):
    BertConfig(hidden_size=32).save_pretrained(folder)
    for check in (_load, lambda path: check_local_encoder(path, 32)):
        with pytest.raises(ModelSpecError, match="it is of type 'bert'"):
            check(folder)


def test_truncated_weights_are_one_sentence(folder):
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    for check in (_load, lambda path: check_local_encoder(path, 32)):
        with pytest.raises(ModelSpecError, match=re.escape(str(folder))) as caught:
            check(folder)
        assert "\n" not in str(caught.value)


def test_a_weight_that_is_no_finite_number_is_named(folder):
    state = load_file(folder / "model.safetensors")
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    state[name][0, 0] = float("nan")
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"^{name}: holds numbers that are not finite"):
        _load(folder)


def test_weights_of_another_shape_are_refused(folder):
    _edit_config(folder, d_ff=24)
    with pytest.raises(ModelSpecError, match=re.escape(str(folder))):
        _load(folder)


def test_what_is_no_encoder_at_all_is_refused(tmp_path):
    with pytest.raises(ModelSpecError, match=r"no readable config\.json"):
        check_local_encoder(tmp_path, 32)
    with pytest.raises(ModelSpecError, match="no folder with a T5 encoder"):
        _load(tmp_path)


def test_another_width_is_told_before_loading(folder):
    with pytest.raises(ModelSpecError, match="its width is 32, the transformer reads text of width 2048"):
        check_local_encoder(folder, 2048)


def test_random_encoders_depend_on_their_seed_alone():
    sizes = T5Architecture(d_model=32, d_kv=8, d_ff=16, num_layers=1, num_heads=4)
    first, again, other = (
        TextEncoder.random(sizes, seed, CPU, torch.float32).encode(["a red cube"])[0].features
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
