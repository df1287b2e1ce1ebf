"""What the folder of a text encoder says of itself; nothing here imports PyTorch."""

import json
from pathlib import Path
from typing import Final

from safetensors import SafetensorError, safe_open

from toprovar_batch.worker.errors import ModelSpecError

MODEL_TYPES: Final = ("t5", "mt5", "umt5")


def refuse_unless(condition: bool, name: str, reason: str) -> None:
    """Refuse the encoder called `name` for a reason.

    Raises:
        ModelSpecError: the condition does not hold.
    """
    if not condition:
        raise ModelSpecError(f"{name!r} is no T5 encoder that can be used: {reason}")


def check_local_encoder(folder: Path, text_width: int) -> None:
    """Check what a local text encoder says of itself, without loading it.

    Args:
        folder: of the encoder.
        text_width: channels that the transformer reads.

    Raises:
        ModelSpecError: no T5 encoder, of another width, or with unreadable weights.
    """
    name = str(folder)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelSpecError(f"{name!r} is no folder of a T5 encoder (no readable config.json)") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    refuse_unless(kind in MODEL_TYPES, name, f"it is of type {kind!r}")
    width = config.get("d_model")
    refuse_unless(
        width == text_width, name, f"its width is {width}, the transformer reads text of width {text_width}"
    )
    refuse_without_tokenizer(folder)
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="numpy"):
                pass
        except (OSError, SafetensorError) as error:
            raise ModelSpecError(f"{file} is not readable (truncated?); fetch it again") from error


def refuse_without_tokenizer(folder: Path) -> None:
    """Refuse the folder of an encoder that lacks its vocabulary; only a tokenizer of bytes needs none."""
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        settings = None
    kind = settings.get("tokenizer_class") if isinstance(settings, dict) else None
    vocabulary = any((folder / name).is_file() for name in ("tokenizer.json", "spiece.model"))
    refuse_unless(
        vocabulary or str(kind).startswith("ByT5"),
        str(folder),
        "its tokenizer is missing (tokenizer.json or spiece.model)",
    )
