"""Seeded random weights at any size, for benchmarks and tests without a checkpoint."""

import zlib

import torch
from torch import Tensor, nn

_GAINS = {"ada_gss": 0.3, "lvl_embed.weight": 0.5, "pos_start": 0.5, "cfg_uncond": 0.5, "mat_q": 1.0}


def empty_embedding(rows: int, width: int) -> nn.Embedding:
    """An embedding [rows, width] that waits for its values.

    PyTorch's own would draw some, and to do so on the meta device it would import its compiler.
    """
    return nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)


def take_storage(module: nn.Module, device: torch.device) -> None:
    """Give the parameters of a module on the meta device room on another, with nothing in it yet.

    `Module.to_empty` does so too, but imports PyTorch's compiler and its algebra for it, which takes seconds.

    Args:
        module: changed in place; it must have no buffers, as theirs would need values.
        device: of the parameters.
    """
    assert not list(module.buffers())
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            room = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
            setattr(part, name, nn.Parameter(room, parameter.requires_grad))


def initialize_randomly(module: nn.Module, seed: int) -> None:
    """Fill every parameter so that signals keep their size through the network.

    Each parameter has its own generator, seeded by `seed` and its name and living on its device. So the
    result does not depend on the order of filling. Weights differ between a CPU and a GPU.

    Args:
        module: on its final device; changed in place.
        seed: of the whole module.
    """
    for name, parameter in module.named_parameters():
        generator = torch.Generator(parameter.device).manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
        with torch.no_grad():
            _fill(name, parameter, generator)


def _fill(name: str, parameter: Tensor, generator: torch.Generator) -> None:
    last = name.rsplit(".", maxsplit=1)[-1]
    gain = next((gain for ending, gain in _GAINS.items() if name.endswith(ending)), None)
    if gain is not None:
        parameter.normal_(0, gain, generator=generator)
    elif last == "scale_mul_1H11":
        parameter.fill_(4.0).log_()
    elif last == "bias" or last.endswith("_bias"):
        parameter.normal_(0, 0.02, generator=generator)
    elif parameter.dim() == 1:  # the weights of norms
        parameter.fill_(1.0)
    else:
        fan_in = parameter[0].numel()
        parameter.normal_(0, fan_in**-0.5, generator=generator)
