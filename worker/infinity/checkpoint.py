"""Reading weight files of every official form, strictly, and writing our own.

Forms read: one torch file, one safetensors file, or a folder of shards (.bin or .safetensors) with its index.
Torch files are loaded with `weights_only`: nothing in a checkpoint is executed.
"""

import json
import mmap
import pickle
import pickletools
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from toprovar_batch.worker.errors import CheckpointError

StateDict = dict[str, Tensor]

_INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WRAPPERS = ("trainer", "gpt_fsdp", "gpt_wo_ddp", "state_dict", "model", "vae")
_BLOCK = re.compile(r"^block_chunks\.(\d+)\.module\.(\d+)\.")
_WRAPPED_CONV = re.compile(r"\b(conv_in|conv_out|conv\d|nin_shortcut|(?:up|down)sample\.conv)\.conv\.")
_WRAPPED_NORM = re.compile(r"\b(norm\d|norm_out)\.norm\.")
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_IGNORED = re.compile(r"(^|\.)zero_k_bias$|^quantizer?\.lfq\.mask$")


def read_state_dict(path: Path) -> StateDict:
    """Read a checkpoint as it is stored, on the CPU, memory-mapped where the form allows.

    Raises:
        CheckpointError: missing, truncated, or not a checkpoint; names the file.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or folder; check the path of the weights")
    if path.is_dir():
        return _read_folder(path)
    return _read_file(path)


def _read_folder(folder: Path) -> StateDict:
    index_path = next((folder / name for name in _INDEX_FILES if (folder / name).exists()), None)
    if index_path is None:
        single = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*.pth")])
        if len(single) == 1:
            return _read_file(single[0])
        raise CheckpointError(f"{folder}: holds no weight index ({' or '.join(_INDEX_FILES)})")
    weight_map = _read_weight_map(index_path)
    state: StateDict = {}
    for shard in sorted(set(weight_map.values())):
        if not (folder / shard).is_file():
            raise CheckpointError(f"{folder / shard}: named by {index_path.name} but missing")
        state |= _read_file(folder / shard)
    absent = weight_map.keys() - state.keys()
    if absent:
        name = min(absent)
        raise CheckpointError(f"{name}: missing from {folder / weight_map[name]}, where the index places it")
    return state


def _read_weight_map(index_path: Path) -> dict[str, str]:
    """Tensor name to shard file."""
    try:
        weight_map = json.loads(index_path.read_text())["weight_map"]
        names = [*weight_map.keys(), *weight_map.values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index_path}: not a weight index (no usable `weight_map`)") from error
    if not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{index_path}: not a weight index (its `weight_map` must hold names)")
    return dict(weight_map)


def _read_file(path: Path) -> StateDict:
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        # PyTorch says that it may not know a newer pickle; whether it does, we learn and say.
        warnings.filterwarnings("ignore", "Detected pickle protocol")
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        code = _GLOBAL.search(str(error))
        if code is None and not _names_code(path):
            raise _unreadable(path) from error
        raise CheckpointError(
            f"{path}: contains code{f' ({code[1]})' if code else ''}, refused; only tensors and plain values are read, "
            "so save the state dict alone"
        ) from error
    except Exception as error:  # an unpickler over broken bytes raises whatever they lead it to
        raise _unreadable(path) from error
    return _unwrap(loaded, path)


def _unreadable(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path}: not a readable checkpoint (truncated, or of another format); fetch it again"
    )


def _names_code(path: Path) -> bool:
    """Whether a pickle of a protocol that PyTorch does not read would import something; it is not run."""
    try:
        # Mapped, since a file would be asked for as many bytes at once as a broken length says.
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pickled:
            return any(
                code.name.endswith("GLOBAL") for code, *_ in pickletools.genops(cast("IO[bytes]", pickled))
            )
    except (ValueError, EOFError):
        return False


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _unwrap(loaded: object, path: Path) -> StateDict:
    """Find the state dict inside a training checkpoint or the VAE's `{"vae": ...}`."""
    while isinstance(loaded, Mapping):
        if loaded and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in loaded.items()):
            return dict(loaded)
        inner = next((name for name in _WRAPPERS if isinstance(loaded.get(name), Mapping)), None)
        if inner is None:
            break
        loaded = loaded[inner]
    raise CheckpointError(
        f"{path}: holds no state dict of tensors; is this a weight file of Infinity or its VAE?"
    )


def normalize_transformer(state: Mapping[str, Tensor]) -> StateDict:
    """Rename an official transformer state dict to this package's names; drops what is constant.

    Raises:
        CheckpointError: the numbers of the blocks have a gap.
    """
    places = sorted({(int(m[1]), int(m[2])) for name in state if (m := _BLOCK.match(name))})
    layer_of = {place: layer for layer, place in enumerate(places)}
    for chunk, place in places:
        before = (chunk, place - 1) if place else (chunk - 1, 0)
        if before not in layer_of and (chunk, place) != (0, 0):
            raise CheckpointError(
                f"block_chunks.{before[0]}.module.{before[1]}: missing, though later blocks are there; "
                "the checkpoint is incomplete"
            )
    renamed = {}
    for name, tensor in state.items():
        if _IGNORED.search(name):
            continue
        match = _BLOCK.match(name)
        if match:
            layer = layer_of[int(match[1]), int(match[2])]
            name = f"blocks.{layer}.{name[match.end() :]}"  # noqa: PLW2901
        renamed[name] = tensor
    return renamed


def normalize_vae(state: Mapping[str, Tensor]) -> StateDict:
    """Rename an official VAE state dict (either naming) to this package's names."""
    return {
        _WRAPPED_NORM.sub(r"\1.", _WRAPPED_CONV.sub(r"\1.", name)): tensor
        for name, tensor in state.items()
        if not _IGNORED.search(name)
    }


def adapt_transformer(name: str, tensor: Tensor, expected: torch.Size) -> Tensor:
    """Shapes that official files vary in: the heads' axis of the q scale, and the length of `cfg_uncond`."""
    if name.endswith("scale_mul_1H11") and tensor.numel() == expected.numel():
        return tensor.reshape(expected)
    if name == "cfg_uncond" and tensor.dim() == 2 and tensor.shape[1] == expected[1]:
        fitted = tensor.new_zeros(expected)
        rows = min(len(tensor), expected[0])
        fitted[:rows] = tensor[:rows]
        return fitted
    return tensor


def fit_state(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str,
    adapt: Callable[[str, Tensor, torch.Size], Tensor] = lambda _name, tensor, _shape: tensor,
) -> StateDict:
    """Check that a state dict is a module's, tensor by tensor, none missing and none left over.

    Args:
        module: on any device, the meta device too.
        state: name to tensor, in this package's names.
        source: the file, for messages.
        adapt: makes allowed variations of a tensor fit.

    Returns:
        The tensors in the module's shapes, in their stored dtypes.

    Raises:
        CheckpointError: a tensor missing, unexpected, misshapen or not of numbers; names it.
    """
    expected = {name: parameter.shape for name, parameter in module.named_parameters()}
    fitted = {}
    for name, shape in expected.items():
        if name not in state:
            raise CheckpointError(f"{name}: missing from {source}; is this checkpoint of the chosen model?")
        tensor = adapt(name, state[name], shape)
        if tensor.shape != shape:
            raise CheckpointError(
                f"{name}: expected shape {tuple(shape)}, got {tuple(tensor.shape)} in {source}; "
                "is this checkpoint of the chosen model?"
            )
        if not tensor.is_floating_point():
            raise CheckpointError(f"{name}: expected floating-point numbers, got {tensor.dtype} in {source}")
        fitted[name] = tensor
    unexpected = sorted(state.keys() - expected.keys())
    if unexpected:
        more = f" (and {len(unexpected) - 1} more)" if len(unexpected) > 1 else ""
        raise CheckpointError(
            f"{unexpected[0]}: unexpected in {source}{more}; is this checkpoint of the chosen model?"
        )
    return fitted


def load_into(
    module: nn.Module,
    fitted: Mapping[str, Tensor],
    device: torch.device,
    dtype_of: Callable[[str], torch.dtype],
    *,
    source: str,
) -> None:
    """Give a module (built on the meta device) its weights, each moved and converted once.

    Args:
        module: takes the tensors as its parameters.
        fitted: from `fit_state`.
        device: where the parameters go.
        dtype_of: the wanted dtype of a parameter, by name.
        source: the file, for messages.

    Raises:
        CheckpointError: a tensor holds a number that is not finite; names it.
    """
    weights = {
        name: tensor.to(device=device, dtype=dtype_of(name), copy=True) for name, tensor in fitted.items()
    }
    check_finite(weights, source)
    module.load_state_dict(weights, strict=True, assign=True)


def check_finite(weights: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that would give pictures of nothing; waits for their device once.

    Args:
        weights: name to tensor, all on one device.
        source: the file or folder, for messages.

    Raises:
        CheckpointError: a tensor holds a number that is not finite; names the first.
    """
    if not weights:
        return
    # The extremes are NaN where any number is, and need no copy of the tensor.
    extremes = torch.stack([torch.stack(tensor.aminmax()).float() for tensor in weights.values()])
    finite = extremes.isfinite().all(1).tolist()
    for (name, tensor), sound in zip(weights.items(), finite, strict=True):
        if not sound:
            raise CheckpointError(
                f"{name}: holds numbers that are not finite in {str(tensor.dtype).removeprefix('torch.')}, in {source}; "
                "fetch the file again, or choose another model.dtype"
            )


def save_plain(module: nn.Module, path: Path) -> None:
    """Write a module's weights as one safetensors file in this package's names, which `read_state_dict` reads."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    _save_aside(state, path)


def _save_aside(state: StateDict, path: Path) -> None:
    """Write a file beside `path`, and put it there once it is whole."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        save_file(state, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_shards(module: nn.Module, folder: Path, max_bytes: int) -> None:
    """Write a module's weights as safetensors shards of at most `max_bytes` with their index.

    A tensor larger than `max_bytes` gets a shard of its own.
    """
    shards: list[StateDict] = [{}]
    used = 0
    for name, tensor in module.state_dict().items():
        if shards[-1] and used + tensor.nbytes > max_bytes:
            shards.append({})
            used = 0
        shards[-1][name] = tensor.detach().cpu().contiguous()
        used += tensor.nbytes
    folder.mkdir(parents=True, exist_ok=True)
    files = [f"model-{index:05d}-of-{len(shards):05d}.safetensors" for index in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        _save_aside(shard, folder / file)
    weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    index = {
        "metadata": {"total_size": sum(t.nbytes for s in shards for t in s.values())},
        "weight_map": weight_map,
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
