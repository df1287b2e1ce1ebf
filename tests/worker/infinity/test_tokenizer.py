"""Token ids: those of transformers, without importing it."""

import json
import subprocess
import sys

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, ByT5Tokenizer

from toprovar_batch.worker.infinity.tokenizer import (
    FileTokenizer,
    TransformersTokenizer,
    byte_tokenizer,
    load_tokenizer,
)

TEXTS = [
    "",
    " ",
    "a photo of a red apple on a wooden table",
    "  two  spaces,\ttabs\n\nand lines ",
    "é ü ß 日本語 🙂 \u00ad \x00 \x7f",
    "a </s> b <pad>  <unk> c",
    "<extra_id_3> and <extra_id_124>",
    "long " * 300,
]


@pytest.fixture(scope="module")
def unigram(tmp_path_factory):
    """A folder with a tokenizer of the kind of T5's, as its authors publish them."""
    folder = tmp_path_factory.mktemp("unigram")
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    specials = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=specials, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([text for text in TEXTS if text.isascii()] * 5, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.decoder = decoders.Metaspace()
    # As they were when it was trained; a reader sets its own.
    tokenizer.enable_truncation(7)
    tokenizer.enable_padding(length=7)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": {"content": "<pad>", "__type": "AddedToken"},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("most", [None, 1, 2, 20, 512])
def test_a_tokenizer_file_gives_what_transformers_gives(unigram, most):
    found = load_tokenizer(str(unigram))
    expected = TransformersTokenizer(AutoTokenizer.from_pretrained(unigram))
    assert isinstance(found, FileTokenizer)
    assert found.ids(TEXTS, most) == expected.ids(TEXTS, most)
    assert (found.pad_id, found.unknown_id) == (expected.pad_id, expected.unknown_id) == (0, 2)
    assert any(found.unknown_id in ids for ids in found.ids(TEXTS))


@pytest.mark.parametrize("most", [None, 1, 2, 20, 512])
def test_bytes_are_read_as_by_byt5(most):
    expected = TransformersTokenizer(ByT5Tokenizer())
    assert byte_tokenizer().ids(TEXTS, most) == expected.ids(TEXTS, most)
    every = [chr(byte) for byte in range(256)]
    assert byte_tokenizer().ids(every) == expected.ids(every)
    assert byte_tokenizer().pad_id == expected.pad_id == 0


def test_a_tokenizer_without_its_file_is_that_of_transformers(tmp_path):
    ByT5Tokenizer().save_pretrained(tmp_path)
    found = load_tokenizer(str(tmp_path))
    assert isinstance(found, TransformersTokenizer)
    assert found.ids(["ab"]) == [[100, 101, 1]]


def test_a_file_that_is_no_tokenizer_is_named(unigram, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text((unigram / "tokenizer_config.json").read_text())
    with pytest.raises(ValueError, match=r"tokenizer\.json is no tokenizer"):
        load_tokenizer(str(tmp_path))


def test_a_model_loads_without_what_is_slow_to_import():
    """Neither transformers, nor the compiler and the algebra that PyTorch imports for some of its operations."""
    code = (
        "import sys, torch\n"
        "from toprovar_batch.worker.models import build_model\n"
        "from toprovar_batch.worker.resolved import resolve\n"
        "from toprovar_batch.worker.specs import EngineSpec\n"
        "for settings in ({'preset': 'tiny'}, {'preset': 'tiny', 'random_weights': True}):\n"
        "    spec = resolve(EngineSpec.model_validate({'model': settings}))\n"
        "    build_model(spec.model, torch.device('cpu'), torch.float32).text_encoder.encode(['a'])\n"
        "slow = {'transformers', 'sympy', 'torch._dynamo', 'torch.fx.experimental.symbolic_shapes'}\n"
        "sys.exit(' '.join(sorted(slow & sys.modules.keys())) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
