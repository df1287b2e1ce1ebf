"""From specs to what an engine runs with: its device, dtype and sampling settings."""

import torch

from toprovar_batch.kernels.ops import Backend, resolve_backend

from .errors import ModelSpecError
from .infinity.config import get_preset, resolve_architecture
from .infinity.schedule import num_scales
from .sampling_settings import SamplingSettings, per_scale
from .specs import EngineSpec, ModelSpec

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(setting: str) -> torch.device:
    """The device of a setting: "auto" takes a GPU where there is one.

    Raises:
        ModelSpecError: cuda is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if setting == "cuda" and not available:
        raise ModelSpecError(
            "runtime.device: cuda is asked for, but PyTorch sees no GPU here; use auto or cpu, or a CUDA build of torch"
        )
    return torch.device("cuda" if available and setting != "cpu" else "cpu")


def resolve_kernels(setting: str, device: torch.device, model: ModelSpec) -> Backend:
    """The kernels of a setting.

    Raises:
        ModelSpecError: kernels are asked for that cannot run on the device; says why.
    """
    try:
        return resolve_backend(setting, device, resolve_architecture(model)[0].head_dim)
    except ValueError as error:
        raise ModelSpecError(f"runtime.backend: {error}") from error


def resolve_settings(spec: EngineSpec, resolution: str) -> SamplingSettings:
    """The sampling settings of a spec with its preset's values, one a scale.

    Raises:
        ModelSpecError: a per-scale list of the wrong length, or a guidance layer the model does not have.
    """
    preset, sampling = get_preset(spec.model.preset), spec.sampling
    count = num_scales(resolution)
    depth = resolve_architecture(spec.model)[0].depth
    if -sampling.cfg_insertion_layer > depth:
        raise ModelSpecError(
            f"sampling.cfg_insertion_layer: {sampling.cfg_insertion_layer} names no block of a model of depth "
            f"{depth}; use 0 to {-depth}"
        )
    cfg_scale = preset.cfg_scale if sampling.cfg_scale is None else sampling.cfg_scale
    temperature = preset.temperature if sampling.temperature is None else sampling.temperature
    return SamplingSettings(
        cfg_scale=per_scale(cfg_scale, count, "sampling.cfg_scale"),
        temperature=per_scale(temperature, count, "sampling.temperature"),
        top_p=sampling.top_p,
        greedy=sampling.greedy or sampling.top_k == 1,
        cfg_insertion_layers=(sampling.cfg_insertion_layer,),
    )


def resolve_dtype(setting: str, device: torch.device) -> torch.dtype:
    """Compute dtype: as asked for, else bfloat16 on a GPU and float32 on a CPU."""
    if setting != "auto":
        return _DTYPES[setting]
    return torch.bfloat16 if device.type == "cuda" else torch.float32
