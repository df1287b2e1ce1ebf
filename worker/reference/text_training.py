"""The small T5 encoder of the reference model and the tokenizer it reads with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toprovar_batch.worker.infinity.config import T5Architecture

from .scenes import make_batch

_VOCABULARY = 1024
_CORPUS = 20_000
_SEED = 5
_PAD, _EOS = "<pad>", "</s>"


def build_tokenizer() -> Any:
    """Byte-level BPE over the captions of seeded scenes: any Unicode text has tokens, none is unknown.

    Returns:
        A transformers tokenizer that lower-cases and closes every text with an end token, as T5 expects.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: PLC0415
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=[_PAD, _EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(make_batch(_SEED, 0, _CORPUS).captions, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {_EOS}", special_tokens=[(_EOS, tokenizer.token_to_id(_EOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=_PAD, eos_token=_EOS, model_max_length=512
    )


def build_text_encoder(sizes: T5Architecture, vocabulary: int) -> Any:
    """A T5 encoder with fresh weights and no dropout."""
    from transformers import T5Config, T5EncoderModel  # noqa: PLC0415

    config = T5Config(
        vocab_size=vocabulary,
        d_model=sizes.d_model,
        d_kv=sizes.d_kv,
        d_ff=sizes.d_ff,
        num_layers=sizes.num_layers,
        num_heads=sizes.num_heads,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
    )
    return T5EncoderModel(config)


def load_text(folder: Path) -> tuple[Any, Any]:
    """Tokenizer and encoder of a folder, the encoder in float32 and ready to train."""
    from transformers import AutoTokenizer, T5EncoderModel  # noqa: PLC0415

    encoder = T5EncoderModel.from_pretrained(folder, dtype=torch.float32)
    return AutoTokenizer.from_pretrained(folder), encoder


def tokenize(tokenizer: Any, captions: Sequence[str], size: int) -> tuple[Tensor, Tensor]:
    """Tokens of captions on the CPU, padded and, where one is longer, cut to `size`.

    Returns:
        [B, size] int64, and [B] int64: the tokens of each caption without padding.
    """
    batch = tokenizer(
        list(captions), truncation=True, max_length=size, padding="max_length", return_tensors="pt"
    )
    return batch["input_ids"], batch["attention_mask"].sum(1)


def encode_captions(encoder: Any, ids: Tensor, seen: Tensor) -> Tensor:
    """Features [B, N, Ct5] float32 of tokens [B, N], of which those not `seen` are padding; with gradients."""
    hidden: Tensor = encoder(input_ids=ids, attention_mask=seen).last_hidden_state
    return hidden.float()
