"""The small T5 encoder of the reference model and the tokenizer it reads with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toprovar_batch.worker.infinity.config import T5Architecture
from toprovar_batch.worker.reference.scenes import make_batch

_VOCABULARY = 1024
_CORPUS = 20_000
_SEED = 5
# T5 begins with 1: beside that, what the few layers of a small encoder add of a word's neighbours is lost.
_EMBEDDING_STD = 0.4
_FAR = -8.0
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
    encoder = T5EncoderModel(config)
    encoder.shared.weight.data.mul_(_EMBEDDING_STD)
    biases = encoder.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    with torch.no_grad():
        biases.copy_(local_biases(*biases.shape))
    return encoder


def local_biases(num_buckets: int, num_heads: int) -> Tensor:
    """Biases of T5's attention that tell a word from its neighbours: [buckets, heads] float32.

    Of every four heads one looks at the token before, one at the token behind, one around, one at the whole caption.
    From T5's own start, noise of 0.06, a small encoder trained through pictures alone never learns to tell places
    apart: "a red cube and a blue ball" stays a bag of words.
    """
    half = num_buckets // 2  # of the distances before a token, and as many behind it
    distance = torch.arange(half, dtype=torch.float32)
    beside = (-3.0 * (distance - 1).abs()).clamp_min(_FAR)
    around = -0.5 * distance
    other_side = torch.full((half,), _FAR)
    other_side[0] = beside[0]  # the token itself; only the first of the two buckets is used
    kinds = [
        torch.cat(halves)
        for halves in (
            (beside, other_side),
            (other_side, beside),
            (around, around),
            (torch.zeros(half), torch.zeros(half)),
        )
    ]
    return torch.stack([kinds[head % len(kinds)] for head in range(num_heads)], dim=1)


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
