"""The T5 text encoder with its tokenizer."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import Tensor

from toprovar_batch.kernels.host_values import send
from toprovar_batch.worker.errors import CheckpointError, ModelSpecError

from .checkpoint import check_finite
from .config import MAX_TEXT_TOKENS, T5Architecture
from .encoder_folder import MODEL_TYPES, refuse_unless, refuse_without_tokenizer
from .encoder_weights import load_encoder, read_config
from .initialize import initialize_randomly, take_storage
from .t5 import T5Encoder, T5Settings
from .text_shapes import CHUNK_ROWS, chunks
from .tokenizer import TextTokenizer, byte_tokenizer, load_tokenizer

if TYPE_CHECKING:
    from toprovar_batch.kernels.cuda_graphs import Replay

# No token of a T5 vocabulary spans this many characters, so cutting here never changes the first 512 tokens
# of a prompt that is not mostly white space; it keeps a prompt of megabytes from being tokenised whole.
_MAX_CHARACTERS = MAX_TEXT_TOKENS * 64


_PROBE = "a photo of a red apple on a table"


@dataclass(frozen=True)
class EncodedText:
    """Features of one prompt: [n, Ct5] float32, and whether the prompt had to be cut to 512 tokens."""

    features: Tensor
    truncated: bool


class TextEncoder:
    """Tokenizer and T5 encoder together."""

    def __init__(self, tokenizer: TextTokenizer, model: T5Encoder, device: torch.device) -> None:
        self._tokenizer = tokenizer
        self._model = model.to(device).eval().requires_grad_(False)
        self._device = device
        self._inputs: dict[int, tuple[Tensor, Tensor]] = {}  # by width: ids and mask, where graphs find them
        self.replay: Replay | None = None
        """Of the work on a GPU; None: it runs as it is."""

    @property
    def width(self) -> int:
        """Channels Ct5 of the features."""
        return self._model.settings.sizes.d_model

    @classmethod
    def load(cls, name: str, device: torch.device, dtype: torch.dtype) -> "TextEncoder":
        """Load a T5 encoder folder or Hugging Face id.

        Raises:
            ModelSpecError: not a T5 encoder with its tokenizer, or not to be had; names it.
            CheckpointError: a weight is no finite number; names the tensor.
        """
        kind = "folder" if Path(name).exists() else "folder or Hugging Face id"
        try:
            config = read_config(name)
            refuse_unless(
                config.get("model_type") in MODEL_TYPES, name, f"it is of type {config.get('model_type')!r}"
            )
            if Path(name).is_dir():
                refuse_without_tokenizer(Path(name))
            tokenizer = load_tokenizer(name)
            model, lacking = load_encoder(name, config, device, dtype)
        except (
            CheckpointError,
            OSError,
            ValueError,
            KeyError,
            ImportError,
            RuntimeError,
            SafetensorError,
            TypeError,
        ) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ModelSpecError(
                f"{name!r} is no {kind} with a T5 encoder and its tokenizer ({reason})"
            ) from error
        refuse_unless(not lacking, name, f"its weights do not fit its config: {', '.join(lacking[:1])}")
        refuse_unless(
            tokenizer.unknown_id is None or tokenizer.unknown_id not in tokenizer.ids([_PROBE])[0],
            name,
            "its tokenizer does not know plain words; is tokenizer.json or spiece.model missing?",
        )
        encoder = cls(tokenizer, model, device)
        check_finite(dict(encoder._model.named_parameters()), name)
        return encoder

    @classmethod
    def random(
        cls, sizes: T5Architecture, seed: int, device: torch.device, dtype: torch.dtype
    ) -> "TextEncoder":
        """A T5 encoder of the given sizes with seeded random weights, reading bytes as ByT5 does."""
        with torch.device("meta"):
            model = T5Encoder(T5Settings(sizes)).to(dtype)
        take_storage(model, device)
        initialize_randomly(model, seed)
        return cls(byte_tokenizer(), model, device)

    def encode(self, prompts: list[str]) -> list[EncodedText]:
        """Encode prompts together; each gets the features of its own tokens only.

        Args:
            prompts: any Unicode; cut to 512 tokens, the end token included.

        Returns:
            One EncodedText a prompt, on the encoder's device.
        """
        cut = [prompt[:_MAX_CHARACTERS] for prompt in prompts]
        tokens = self._tokenizer.ids(cut)
        truncated = [
            len(ids) > MAX_TEXT_TOKENS or len(prompt) > _MAX_CHARACTERS
            for ids, prompt in zip(tokens, prompts, strict=True)
        ]
        found = self._tokenizer.ids(cut, MAX_TEXT_TOKENS)
        together = self._device.type != "cuda"
        groups = [(max(map(len, found)), list(range(len(found))))] if together else chunks([*map(len, found)])
        features: dict[int, Tensor] = {}
        for width, texts in groups:
            hidden = self._run([found[text] for text in texts], width, len(texts) if together else CHUNK_ROWS)
            features |= {
                text: hidden[row, : len(found[text])].to(torch.float32, copy=True)
                for row, text in enumerate(texts)
            }
        return [EncodedText(features[text], cut_short) for text, cut_short in enumerate(truncated)]

    def _run(self, texts: list[list[int]], width: int, rows: int) -> Tensor:
        """[rows, width, Ct5] features of padded token ids; on a GPU they hold until the next of this shape."""
        ids = torch.full((rows, width), self._tokenizer.pad_id)
        own = torch.zeros((rows, width), dtype=torch.int64)
        own[:, 0] = 1  # a row without a text
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
            own[row, : len(text)] = 1
        mask = own.bool()[:, None, None, :]
        with torch.inference_mode():
            if self._device.type != "cuda":
                hidden: Tensor = self._model(ids, None if mask.all() else mask)
                return hidden
            if width not in self._inputs:
                self._inputs[width] = (
                    torch.empty_like(ids, device=self._device),
                    torch.empty_like(mask, device=self._device),
                )
            static = self._inputs[width]
            for held, given in zip(static, (ids, mask), strict=True):
                held.copy_(send(given, self._device))
            body = partial(self._model, *static)
            return body() if self.replay is None else self.replay.run(("t5", width), body)
