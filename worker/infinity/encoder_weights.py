"""A T5 encoder from a folder or from the Hugging Face Hub."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from .checkpoint import StateDict, read_state_dict
from .t5 import T5Encoder, T5Settings, t5_dtype

# In the order in which transformers looks for them.
_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_WRAPPER = "transformer."  # in files of models with a head
_SHARED, _EMBEDDING = "shared.weight", "encoder.embed_tokens.weight"  # one tensor in two names


def read_config(name: str) -> dict[str, Any]:
    """The config.json of a folder or Hugging Face id.

    Raises:
        OSError: there is none to be had.
        ValueError: it is no JSON object.
    """
    config = json.loads(file_of(name, "config.json").read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError("config.json holds no object")  # noqa: TRY004 - of the file, not of an argument
    return config


def load_encoder(
    name: str, config: Mapping[str, Any], device: torch.device, dtype: torch.dtype
) -> tuple[T5Encoder, list[str]]:
    """Load an encoder whatever else is in its files, such as a decoder.

    Args:
        name: folder or Hugging Face id.
        config: its config.json.
        device: where the encoder goes.
        dtype: compute dtype.

    Returns:
        The encoder, and the names of the weights that are missing or have other shapes; it has no weights then.

    Raises:
        OSError: no weights to be had.
        ValueError: a config that says what no encoder is.
        CheckpointError: a file that is not readable.
    """
    settings = T5Settings.of_config(config)
    with torch.device("meta"):
        model = T5Encoder(settings)
    found = _read(name)
    wanted = {key: parameter.shape for key, parameter in model.named_parameters()}
    fitted = {key: found[key] for key, shape in wanted.items() if key in found and found[key].shape == shape}
    lacking = sorted(wanted.keys() - fitted.keys())
    if not lacking:
        dtype_of = t5_dtype(dtype)
        weights = {key: tensor.to(device, dtype_of(key), copy=True) for key, tensor in fitted.items()}
        model.load_state_dict(weights, strict=True, assign=True)
    return model, lacking


def _read(name: str) -> StateDict:
    """The weights by the names of `T5Encoder`, as they are stored, and others."""
    state: StateDict = {}
    for file in weight_files(name):
        state |= {key.removeprefix(_WRAPPER): tensor for key, tensor in read_state_dict(file).items()}
    if _SHARED in state:
        state[_EMBEDDING] = state[_SHARED]
    return state


def weight_files(name: str, get_file: Callable[[str, str], Path] | None = None) -> list[Path]:
    """The files that hold an encoder's weights; of shards those that hold some of them.

    Args:
        name: folder or Hugging Face id.
        get_file: gives a file of that by its name; None takes it from the folder, or through the hub's cache.

    Raises:
        OSError: there are no such files, or they cannot be had.
    """
    get_file = get_file or file_of
    for file in _WEIGHT_FILES[:-1]:
        try:
            found = get_file(name, file)
            break
        except OSError:
            continue
    else:
        found = get_file(name, _WEIGHT_FILES[-1])
    if found.suffix != ".json":
        return [found]
    shards = json.loads(found.read_text(encoding="utf-8"))["weight_map"]
    ours = ("shared.", "encoder.", _WRAPPER)
    return [
        get_file(name, shard) for shard in sorted({shards[key] for key in shards if key.startswith(ours)})
    ]


def file_of(name: str, file: str) -> Path:
    """A file of a folder, or of a repository through the hub's cache.

    Raises:
        OSError: it is not there, or cannot be had.
    """
    folder = Path(name)
    if folder.is_dir():
        if not (folder / file).is_file():
            raise OSError(f"no file {file} in {name}")
        return folder / file
    from huggingface_hub import hf_hub_download  # noqa: PLC0415 (slow to import)

    try:
        return Path(hf_hub_download(name, file))
    except OSError:
        raise
    except Exception as error:  # of the hub, of its HTTP library, or of a name that none can have
        raise OSError(str(error)) from error
