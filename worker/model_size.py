"""Whether a model can be in a memory at all, asked before anything of it is built. No PyTorch.

It counts transformer and decoder. The text encoder and the batches come on top, so a model that passes may not fit.
"""

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from .errors import ModelSpecError
from .infinity.parameter_counts import decoder_parameters, transformer_parameters
from .presets import get_preset
from .resolved import ResolvedModel

LARGEST_GPU: Final = 288 * 10**9
"""Bytes of the largest GPU that is sold: a model that does not fit there needs another size."""

_OBJECTS_OF_A_BLOCK = 39_000  # bytes of Python's and PyTorch's objects, measured, wherever the weights are
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def count_parameters(model: ResolvedModel) -> int:
    """Parameters of transformer and decoder."""
    return transformer_parameters(model.transformer) + decoder_parameters(model.vae)


def refuse_too_large(model: ResolvedModel, itemsize: int, memory: int, place: str) -> None:
    """Refuse a model that a memory cannot hold.

    Args:
        model: its sizes.
        itemsize: bytes of a parameter.
        memory: bytes of all of it, used or not.
        place: whose memory, as in "this machine".

    Raises:
        ModelSpecError: the weights, or the objects that hold them, are larger than that; names the key that makes them so.
    """
    needed = count_parameters(model) * itemsize + model.transformer.depth * _OBJECTS_OF_A_BLOCK
    if needed <= memory:
        return
    size = f"{count_parameters(model) / 1e9:,.1f} billion parameters and takes {_gigabytes(needed)}"
    room = f"{place} has {_gigabytes(memory)} of memory for it"
    key, value, usual = _guilty_key(model)
    if key is None:
        raise ModelSpecError(
            f"model.preset: {model.preset} has {size}, and {room}; choose a smaller preset, or a machine or GPU with more"
        )
    raise ModelSpecError(
        f"model.architecture.{key}: with {value} the model has {size}, and {room}; choose a smaller value "
        f"(preset {model.preset} has {usual})"
    )


def host_memory() -> int:
    """Bytes that this process may have: of the machine, or what its container or shell allows."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    allowed = resource.getrlimit(resource.RLIMIT_AS)[0]
    if allowed != resource.RLIM_INFINITY:
        found.append(allowed)
    for path in _LIMITS:
        with suppress(OSError, ValueError):  # it is not there, or says "max"
            found.append(int(path.read_text(encoding="ascii")))
    return min(found)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count < 1e12 else f"{count / 1e12:,.1f} TB"


def _guilty_key(model: ResolvedModel) -> tuple[str | None, object, object]:
    """The key of the architecture whose preset's value would save most, with its value and the preset's; None without one."""
    keys = list(_with_usual_values(model))
    if not keys:
        return None, None, None
    _, key, value, usual = min(keys, key=lambda found: found[0])
    return key, value, usual


def _with_usual_values(model: ResolvedModel) -> Iterator[tuple[int, str, object, object]]:
    """For each key that differs from the preset: parameters with the preset's value there, key, value, and the preset's."""
    usual = get_preset(model.preset)
    for field in ("depth", "width", "num_heads", "text_width"):
        value, theirs = getattr(model.transformer, field), getattr(usual.transformer, field)
        if value != theirs:
            changed = replace(model, transformer=replace(model.transformer, **{field: theirs}))
            yield count_parameters(changed), field, value, theirs
    for field, key in (
        ("codebook_dim", "codebook_dim"),
        ("base_channels", "vae_base_channels"),
        ("channel_multipliers", "vae_channel_multipliers"),
    ):
        value, theirs = getattr(model.vae, field), getattr(usual.vae, field)
        if value != theirs:
            vae = replace(model.vae, **{field: theirs})
            transformer = replace(model.transformer, bits_per_token=vae.bits_per_token)
            changed = replace(model, vae=vae, transformer=transformer)
            yield count_parameters(changed), key, _shown(value), _shown(theirs)


def _shown(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
