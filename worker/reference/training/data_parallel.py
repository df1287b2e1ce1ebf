"""Training on several GPUs of one machine, one process each: `torchrun --standalone --nproc-per-node N -m ...`.

Started without torchrun, all of it is a single process that does nothing here.
"""

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters


def join() -> torch.device:
    """Join the other processes, if there are any; gives this process's device."""
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "LOCAL_RANK" in os.environ and not dist.is_initialized():
        # Gloo for the clock: reading a number from the GPU would wait for all work queued on it.
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return device


def leave() -> None:
    """End the group, once all are done."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def rank() -> int:
    """This process's number; 0 saves and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    """How many there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def of_first(value: float) -> float:
    """The first process's value: all must see the same time, or they would end at different steps."""
    if not dist.is_initialized():
        return value
    shared = torch.tensor(value, dtype=torch.float64)
    dist.broadcast(shared, 0)
    return shared.item()


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace every gradient by its mean over the processes, in one collective."""
    if not dist.is_initialized():
        return
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:  # no caption was dropped here, say, but one was elsewhere
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    flat = parameters_to_vector(gradients)
    dist.all_reduce(flat)
    vector_to_parameters(flat / dist.get_world_size(), gradients)
