"""From a model's description to modules on a device: files fetched, checked and loaded, or random weights."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .arrivals import ByteCount, counting_bar
from .errors import ModelSpecError
from .fetch import fetch
from .infinity.checkpoint import (
    StateDict,
    adapt_transformer,
    fit_state,
    load_into,
    normalize_transformer,
    normalize_vae,
    read_state_dict,
)
from .infinity.config import TransformerArchitecture, VaeArchitecture
from .infinity.encoder_weights import weight_files
from .infinity.initialize import initialize_randomly, take_storage
from .infinity.text import TextEncoder
from .infinity.transformer import Infinity
from .infinity.vae import Vae
from .model_files import naming
from .resolved import ModelFiles, ResolvedModel
from .storage import storage_errors


@dataclass(frozen=True)
class Model:
    """Everything that generation needs, on one device."""

    transformer: Infinity
    vae: Vae
    text_encoder: TextEncoder


def read_transformer(sizes: TransformerArchitecture, path: Path) -> tuple[Infinity, StateDict]:
    """A transformer without storage, and its checked weights as they are stored.

    Raises:
        CheckpointError: the file does not fit the sizes; names the tensor.
    """
    with torch.device("meta"):
        model = Infinity(sizes)
    state = normalize_transformer(read_state_dict(path))
    return model, fit_state(model, state, source=str(path), adapt=adapt_transformer)


def read_vae(sizes: VaeArchitecture, path: Path, *, with_encoder: bool) -> tuple[Vae, StateDict]:
    """A VAE without storage, and its checked weights as they are stored.

    Raises:
        CheckpointError: the file does not fit the sizes; names the tensor.
    """
    with torch.device("meta"):
        vae = Vae(sizes, with_encoder=with_encoder)
    state = normalize_vae(read_state_dict(path))
    if not with_encoder:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("encoder.")}
    return vae, fit_state(vae, state, source=str(path))


def load_transformer(
    sizes: TransformerArchitecture, path: Path, device: torch.device, dtype: torch.dtype
) -> Infinity:
    """Load a transformer of any official form or our own.

    Raises:
        CheckpointError: the file does not fit the sizes; names the tensor.
    """
    model, fitted = read_transformer(sizes, path)
    load_into(model, fitted, device, transformer_dtype(dtype), source=str(path))
    return model.eval().requires_grad_(False)


def transformer_dtype(dtype: torch.dtype) -> Callable[[str], torch.dtype]:
    """The dtype of each parameter of a transformer that computes in `dtype`."""
    return lambda name: dtype if Infinity.computes_in_low_precision(name) else torch.float32


def load_vae(
    sizes: VaeArchitecture,
    path: Path,
    device: torch.device,
    dtype: torch.dtype,
    *,
    with_encoder: bool = False,
) -> Vae:
    """Load a VAE of either official naming or our own; the encoder only where it is wanted.

    Raises:
        CheckpointError: the file does not fit the sizes; names the tensor.
    """
    vae, fitted = read_vae(sizes, path, with_encoder=with_encoder)
    load_into(vae, fitted, device, lambda _name: dtype, source=str(path))
    return vae.eval().requires_grad_(False)


def random_transformer(
    sizes: TransformerArchitecture, seed: int, device: torch.device, dtype: torch.dtype
) -> Infinity:
    """A transformer of the given sizes with seeded random weights."""
    with torch.device("meta"):
        model = Infinity(sizes)
    dtype_of = transformer_dtype(dtype)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(dtype_of(name))
    take_storage(model, device)
    initialize_randomly(model, seed)
    return model.eval().requires_grad_(False)


def random_vae(sizes: VaeArchitecture, seed: int, device: torch.device, dtype: torch.dtype) -> Vae:
    """A VAE decoder of the given sizes with seeded random weights."""
    with torch.device("meta"):
        vae = Vae(sizes).to(dtype)
    take_storage(vae, device)
    initialize_randomly(vae, seed)
    return vae.eval().requires_grad_(False)


def fetch_model(files: ModelFiles, count: ByteCount) -> None:
    """Bring the files of a model to this machine, beside each other.

    Args:
        files: of the model; those that are here already are left as they are.
        count: of the bytes that arrive.

    Raises:
        CheckpointError: a file cannot be had; names it.
    """
    away = [location for location in (files.transformer, files.vae) if location is not None]
    encoder = files.text_encoder
    with ThreadPoolExecutor(3, thread_name_prefix="fetch") as threads:
        fetched: list[Future[Any]] = [threads.submit(fetch, location, count) for location in away]
        if encoder is not None:
            name = text_encoder_name(encoder)
            fetched.append(
                threads.submit(fetch, encoder, count)
                if name is None
                else threads.submit(_fetch_encoder, name, count)
            )
        for each in fetched:
            each.result()


def _fetch_encoder(name: str, count: ByteCount) -> None:
    """Bring the weights of a Hugging Face id into the hub's cache; a folder is here already.

    What cannot be had is told by whoever loads it: a copy may be in the cache all the same.
    """
    if Path(name).is_dir():
        return
    from huggingface_hub import hf_hub_download  # noqa: PLC0415 (slow to import)

    bar = counting_bar(count)
    with suppress(*storage_errors(ValueError, KeyError)):
        weight_files(name, lambda name, file: Path(hf_hub_download(name, file, tqdm_class=bar)))


def build_model(model: ResolvedModel, device: torch.device, dtype: torch.dtype) -> Model:
    """Load or initialise the three parts of a model.

    Args:
        model: its sizes and files.
        device: of all parts.
        dtype: compute dtype of transformer, VAE and text encoder.

    Raises:
        ModelSpecError: a text encoder that does not fit.
        CheckpointError: a weight file that cannot be had or does not fit.
    """
    # The text encoder imports while the others are read and copied, both of which leave Python to others.
    with ThreadPoolExecutor(1, thread_name_prefix="load") as thread:
        others = thread.submit(_load_transformer_and_vae, model, device, dtype)
        text_encoder = _load_text_encoder(model, device, dtype)
        transformer, vae = others.result()
    transformer.freeze()
    return Model(transformer, vae, text_encoder)


def _load_text_encoder(model: ResolvedModel, device: torch.device, dtype: torch.dtype) -> TextEncoder:
    if model.files.text_encoder is None:
        text_encoder = TextEncoder.random(model.random_text_encoder, model.weights_seed, device, dtype)
    else:
        name = text_encoder_name(model.files.text_encoder) or str(fetch(model.files.text_encoder))
        with naming("model.text_encoder"):
            text_encoder = TextEncoder.load(name, device, dtype)
    if text_encoder.width != model.transformer.text_width:
        raise ModelSpecError(
            f"model.text_encoder: its width is {text_encoder.width}, "
            f"but the transformer reads text of width {model.transformer.text_width}"
        )
    return text_encoder


def _load_transformer_and_vae(
    model: ResolvedModel, device: torch.device, dtype: torch.dtype
) -> tuple[Infinity, Vae]:
    files, seed = model.files, model.weights_seed
    if files.transformer is None:
        transformer = random_transformer(model.transformer, seed, device, dtype)
    else:
        transformer = load_transformer(model.transformer, fetch(files.transformer), device, dtype)
    if files.vae is None:
        vae = random_vae(model.vae, seed, device, dtype)
    else:
        vae = load_vae(model.vae, fetch(files.vae), device, dtype)
    return transformer, vae


def text_encoder_name(location: str) -> str | None:
    """A local folder or a Hugging Face id, which stays one, also as hf://owner/name; None for what must be fetched."""
    if location.startswith("hf://") and location.count("/") == 3:
        return location.removeprefix("hf://")
    return None if "://" in location or location.startswith("~") else location
