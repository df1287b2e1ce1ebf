"""From texts to the token ids of a text encoder.

Where a folder or Hugging Face id has its tokenizer.json, the `tokenizers` library reads it. Other tokenizers are those of
transformers, whose import takes as long as loading a model.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing

from .encoder_weights import file_of

# Classes of transformers that add nothing to what tokenizer.json says.
_READ_BY_TOKENIZERS = {"T5Tokenizer", "T5TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"}
_EXTRA_IDS = 125  # of ByT5


class TextTokenizer(Protocol):
    """What a text encoder needs of its tokenizer.

    Attributes:
        pad_id: of what stands behind a text.
        unknown_id: of what the vocabulary lacks; None where it lacks nothing.
    """

    pad_id: int
    unknown_id: int | None

    def ids(self, texts: Sequence[str], most: int | None = None) -> list[list[int]]:
        """Token ids of each text, its end token included.

        Args:
            texts: any Unicode.
            most: ids of a text at most, the end token included; None: as many as it takes.
        """


class FileTokenizer:
    """A tokenizer as its file describes it."""

    def __init__(self, tokenizer: Tokenizer, pad: str = "<pad>", unknown: str = "<unk>") -> None:
        """Wrap a tokenizer that no one else uses.

        Args:
            tokenizer: what it says of padding and length is left out.
            pad: the token that stands behind a text; id 0, as of T5, where it has none such.
            unknown: the token for what the vocabulary lacks, which it need not have.
        """
        self._tokenizer = tokenizer
        tokenizer.no_padding()
        self.pad_id = tokenizer.token_to_id(pad) or 0
        self.unknown_id: int | None = tokenizer.token_to_id(unknown)

    def ids(self, texts: Sequence[str], most: int | None = None) -> list[list[int]]:
        """See `TextTokenizer`."""
        if most is None:
            self._tokenizer.no_truncation()
        else:
            self._tokenizer.enable_truncation(most)
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]


class TransformersTokenizer:
    """A tokenizer of transformers."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.pad_id: int = tokenizer.pad_token_id
        self.unknown_id: int | None = tokenizer.unk_token_id

    def ids(self, texts: Sequence[str], most: int | None = None) -> list[list[int]]:
        """See `TextTokenizer`."""
        found: list[list[int]] = self._tokenizer(
            list(texts), truncation=most is not None, max_length=most, verbose=False
        )["input_ids"]
        return found


def load_tokenizer(name: str) -> TextTokenizer:
    """The tokenizer of a folder or Hugging Face id.

    Raises:
        OSError, ValueError, KeyError, TypeError, ImportError: it cannot be had, or not be read.
    """
    settings = _settings(name)
    if settings.get("tokenizer_class") in _READ_BY_TOKENIZERS and (file := _optional(name, "tokenizer.json")):
        words = (_token(settings, "pad_token") or "<pad>", _token(settings, "unk_token") or "<unk>")
        return FileTokenizer(_read(file), *words)
    from transformers import AutoTokenizer  # noqa: PLC0415 (slow to import)
    from transformers.utils import logging  # noqa: PLC0415

    logging.disable_progress_bar()
    return TransformersTokenizer(AutoTokenizer.from_pretrained(name))


def byte_tokenizer() -> FileTokenizer:
    """A text's bytes, as ByT5 reads them: 0 pads, 1 ends, 2 is unknown, and a byte has its value and 3."""
    words = ("<pad>", "</s>", "<unk>")
    vocabulary = {word: index for index, word in enumerate(words)}
    vocabulary |= {character: byte + len(words) for byte, character in enumerate(_characters_of_bytes())}
    tokenizer = Tokenizer(BPE(vocabulary, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens([AddedToken(word, lstrip=True, rstrip=True) for word in words])
    tokenizer.add_special_tokens([f"<extra_id_{index}>" for index in range(_EXTRA_IDS)])
    return FileTokenizer(tokenizer)


def _characters_of_bytes() -> list[str]:
    """What stands for each byte in a vocabulary: itself where it is printable in Latin-1, else a character after that."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0x100)} - {0xAD}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]


def _read(file: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{file} is no tokenizer: {error}") from error


def _settings(name: str) -> dict[str, Any]:
    file = _optional(name, "tokenizer_config.json")
    settings = json.loads(file.read_text(encoding="utf-8")) if file else None
    return settings if isinstance(settings, dict) else {}


def _optional(name: str, file: str) -> Path | None:
    try:
        return file_of(name, file)
    except OSError:
        return None


def _token(settings: dict[str, Any], key: str) -> str | None:
    """A token's text, which stands alone or in an object."""
    token = settings.get(key)
    return token.get("content") if isinstance(token, dict) else token
