"""Comparison with recorded vectors of the official implementation.

A folder holds `meta.json`, a checkpoint, a VAE and `io.safetensors`. The last has the text features, for each scale the
official logits, bits and entropies, and the final image. `meta.json` describes model, VAE, schedule and sampling, and has
the lengths of the prompts: `text_lens`, and `negative_text_lens` where there are `negative_text_features`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from toprovar_batch.kernels.ops import Backend
from toprovar_batch.worker.words import counted

from .batch_runner import BatchRunner
from .errors import CheckpointError, ModelSpecError
from .guidance import text_rows
from .infinity.bsq import code_maps_to_tokens, code_size
from .infinity.config import TransformerArchitecture, VaeArchitecture, check_transformer, check_vae
from .infinity.schedule import SCHEDULES_1M, ScaleSchedule, largest_map
from .infinity.vae import to_uint8
from .models import load_transformer, load_vae
from .runtime import resolve_device, resolve_kernels
from .sampling_settings import SamplingSettings, per_scale

_MARGIN = 1e-4
MAX_LOGIT_ERROR = 1e-5
MAX_ENTROPY_ERROR = 1e-4
MAX_PIXEL_DIFFERENCE = 1
MAX_PIXEL_FRACTION = 3e-3


@dataclass(frozen=True)
class ScaleReport:
    """Agreement at one scale, fed with the recorded bits of the earlier ones.

    Attributes:
        scale_index: counted from 0.
        size: (height, width) of the token map.
        logit_error: largest absolute error over the largest absolute recorded logit.
        bits_differing: bits unlike the recorded ones where the guided margin exceeds 1e-4.
        num_bits: bits of the scale.
    """

    scale_index: int
    size: tuple[int, int]
    logit_error: float
    bits_differing: int
    num_bits: int


@dataclass(frozen=True)
class VerifyReport:
    """Agreement with a folder of recorded vectors.

    Attributes:
        scales: one report a scale.
        entropy_error: largest absolute error of any entropy, nats.
        latent_error: largest absolute error of the summed codes.
        pixel_difference: largest difference of a pixel value, of 255 levels.
        pixel_fraction: fraction of pixel values that differ at all.
    """

    scales: tuple[ScaleReport, ...]
    entropy_error: float
    latent_error: float
    pixel_difference: int
    pixel_fraction: float

    @property
    def passed(self) -> bool:
        """Whether everything is within the tolerances; NaN never is."""
        return (
            all(scale.logit_error <= MAX_LOGIT_ERROR and scale.bits_differing == 0 for scale in self.scales)
            and self.entropy_error <= MAX_ENTROPY_ERROR
            and self.latent_error <= MAX_LOGIT_ERROR
            and self.pixel_difference <= MAX_PIXEL_DIFFERENCE
            and self.pixel_fraction <= MAX_PIXEL_FRACTION
        )


@dataclass(frozen=True)
class RecordedCase:
    """A folder's description, parsed."""

    folder: Path
    transformer: TransformerArchitecture
    vae: VaeArchitecture
    schedule: ScaleSchedule
    largest_map: tuple[int, int]
    settings: SamplingSettings
    prompts: list[Tensor]
    negatives: list[Tensor | None]
    recorded: dict[str, Tensor]

    def on(self, device: torch.device) -> "RecordedCase":
        """The same with its tensors on a device."""
        return replace(
            self,
            prompts=[prompt.to(device) for prompt in self.prompts],
            negatives=[None if each is None else each.to(device) for each in self.negatives],
            recorded={name: tensor.to(device) for name, tensor in self.recorded.items()},
        )

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.recorded:
            raise CheckpointError(f"{self.folder / 'io.safetensors'}: the tensor {name!r} is missing")
        return self.recorded[name]


def verify_folder(folder: Path, device_setting: str = "cpu", backend_setting: str = "torch") -> VerifyReport:
    """Run the model of a folder on its recorded text and bits, in float32, and compare.

    Args:
        folder: holds the recording.
        device_setting: cpu, cuda or auto.
        backend_setting: torch, triton or auto.

    Raises:
        ModelSpecError: the folder or its description is incomplete; names the file and the key. Or no such device, or
            kernels that cannot run on it.
        CheckpointError: a weight file or recorded tensor does not fit.
    """
    device = resolve_device(device_setting)
    case = read_case(folder)
    backend = resolve_kernels(backend_setting, device, case.transformer.head_dim)
    return verify_case(case.on(device), device, backend)


def verify_case(case: RecordedCase, device: torch.device, backend: Backend) -> VerifyReport:
    """Compare a recording with what kernels make of it; see `verify_folder`."""
    model = load_transformer(case.transformer, _weight_file(case.folder, vae=False), device, torch.float32)
    vae = load_vae(case.vae, _weight_file(case.folder, vae=True), device, torch.float32)
    if device.type == "cuda":
        vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    # A GPU's convolutions would take float32 for less than it is.
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        rows = text_rows(model, case.prompts, case.negatives, guided=case.settings.guided)
        runner = BatchRunner(
            model,
            model.encode_text(rows),
            case.schedule,
            case.settings,
            largest_map=case.largest_map,
            codebook_dim=case.vae.codebook_dim,
            spatial_patchify=case.vae.spatial_patchify,
            backend=backend,
        )
        scales, entropy_errors = [], []
        for scale_index in range(len(case.schedule)):
            report, entropy_error = _compare_scale(case, runner, scale_index)
            scales.append(report)
            entropy_errors.append(entropy_error)
        image = to_uint8(vae.decode(runner.codes.summed_codes, backend)).int()
    difference = (image.flip(-1) - _expect(case["image_bgr"], image.shape, "image_bgr").int()).abs()
    latent = _expect(case["latent"], runner.codes.summed_codes.shape, "latent")
    return VerifyReport(
        scales=tuple(scales),
        entropy_error=torch.stack(entropy_errors).max().item(),  # NaN stays NaN
        latent_error=(runner.codes.summed_codes - latent).abs().max().item(),
        pixel_difference=int(difference.max()),
        pixel_fraction=(difference > 0).float().mean().item(),
    )


def _compare_scale(case: RecordedCase, runner: BatchRunner, scale_index: int) -> tuple[ScaleReport, Tensor]:
    output = runner.run_scale(scale_index, with_entropy=True)
    # Of a scale without guidance the conditional rows are needed alone; a recording may have the others behind them.
    logits = output.logit_maps
    recorded_logits = case[f"logits.{scale_index}"][: len(logits)]
    _expect(recorded_logits, logits.shape, f"logits.{scale_index}")
    error = (logits - recorded_logits).abs().max() / recorded_logits.abs().max()
    size = code_size(case.schedule[scale_index], runner.spatial_patchify)
    shape = torch.Size((runner.batch, 1, *size, case.vae.codebook_dim))
    bits = _expect(case[f"bits.{scale_index}"], shape, f"bits.{scale_index}")
    maps = bits[:, 0].permute(0, 3, 1, 2)  # [B, z, h, w]
    recorded_bits = code_maps_to_tokens(maps.float(), runner.spatial_patchify).bool()
    drawn = runner.draw_bits(
        scale_index,
        output,
        torch.zeros(runner.batch, dtype=torch.int64, device=logits.device),
        with_guided=True,
    )
    assert drawn.guided is not None
    zero, one = drawn.guided.unflatten(-1, (-1, 2)).unbind(-1)
    wrong = drawn.bits != recorded_bits
    differing = int((wrong & ~((one - zero).abs() <= _MARGIN)).sum())  # NaN margins count
    runner.add_bits(scale_index, recorded_bits)
    entropy_error = torch.stack(
        [
            (entropy - _expect(case[name], entropy.shape, name)).abs().max()
            for layer, entropy in enumerate(output.entropies)
            for name in [f"entropy.{layer}.{scale_index}"]
        ]
    ).max()
    report = ScaleReport(scale_index, case.schedule[scale_index], error.item(), differing, wrong.numel())
    return report, entropy_error


def _expect(tensor: Tensor, shape: torch.Size, name: str) -> Tensor:
    if tensor.shape != shape:
        raise CheckpointError(
            f"io.safetensors: {name} has shape {tuple(tensor.shape)} where the model gives {tuple(shape)}"
        )
    return tensor


def _weight_file(folder: Path, *, vae: bool) -> Path:
    """The VAE's file (vae.*), or the transformer's: the one other weight file, else the folder of shards."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix in {".pth", ".safetensors"}]
    files = [path for path in files if path.name != "io.safetensors" and (path.stem == "vae") == vae]
    has_index = any(folder.glob("*.index.json"))
    if len(files) == 1 and (vae or not has_index):
        return files[0]
    if has_index and not vae:
        return folder
    part = "VAE named vae.pth or vae.safetensors" if vae else "transformer checkpoint"
    raise ModelSpecError(f"{folder}: needs exactly one {part}")


def read_case(folder: Path) -> RecordedCase:
    """Read a folder's description and its recording.

    Raises:
        ModelSpecError: incomplete; names the file and the key.
    """
    meta_file = folder / "meta.json"
    try:
        meta = json.loads(meta_file.read_text())
        recorded = load_file(folder / "io.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelSpecError(f"{folder}: needs a readable meta.json and io.safetensors ({error})") from error
    try:
        return _parse_case(folder, meta, recorded)
    except KeyError as error:
        raise ModelSpecError(f"{meta_file}: the key {error} is missing") from error
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelSpecError(
            f"{meta_file}: a value is of the wrong kind or does not fit ({reason})"
        ) from error


def _parse_case(folder: Path, meta: Mapping[str, Any], recorded: dict[str, Tensor]) -> RecordedCase:
    model, sampling = meta["model"], meta["sampling"]
    vae = VaeArchitecture(
        codebook_dim=meta["vae"]["z_channels"],
        base_channels=meta["vae"]["base_ch"],
        channel_multipliers=tuple(meta["vae"]["ch_mult"]),
        spatial_patchify=bool(model["apply_spatial_patchify"]),
    )
    transformer = TransformerArchitecture(
        depth=model["depth"],
        width=model["embed_dim"],
        num_heads=model["num_heads"],
        text_width=model["text_channels"],
        bits_per_token=vae.bits_per_token,
    )
    check_transformer(transformer, f"{folder / 'meta.json'}: ")
    check_vae(vae, f"{folder / 'meta.json'}: ")
    schedule = tuple((int(h), int(w)) for h, w in meta["schedule"])
    largest = _largest_map(folder, schedule, sampling)
    temperature = per_scale(sampling["tau"], len(schedule), "tau")
    if min(temperature) <= 0:
        raise ModelSpecError(f"{folder / 'meta.json'}: tau must be positive")
    settings = SamplingSettings(
        cfg_scale=per_scale(sampling["cfg_list"], len(schedule), "cfg_list"),
        temperature=temperature,
        greedy=True,
        cfg_insertion_layers=tuple(int(layer) for layer in sampling["insertion"]),
    )
    features = recorded["text_features"].float()
    if features.shape[-1] != transformer.text_width:
        raise ModelSpecError(
            f"{folder}: text_features are {features.shape[-1]} wide, the model reads {transformer.text_width}"
        )
    prompts = list(features.split(meta["text_lens"]))
    negatives: list[Tensor | None] = [None] * len(prompts)
    if "negative_text_features" in recorded:
        features = recorded["negative_text_features"].float()
        negatives = list(features.split(meta["negative_text_lens"]))
        if len(negatives) != len(prompts):
            raise ModelSpecError(
                f"{folder / 'meta.json'}: negative_text_lens has {counted(len(negatives), 'length')} for {counted(len(prompts), 'prompt')}"
            )
    return RecordedCase(folder, transformer, vae, schedule, largest, settings, prompts, negatives, recorded)


def _largest_map(folder: Path, schedule: ScaleSchedule, sampling: Mapping[str, Any]) -> tuple[int, int]:
    """The map that positions are spread over: the last of the official schedule that is recorded, whole or in part."""
    found = {full[-1] for full in SCHEDULES_1M.values() if schedule and full[: len(schedule)] == schedule}
    if not found:
        raise ModelSpecError(f"{folder / 'meta.json'}: its schedule is none of the official ones")
    if len(found) == 1:
        return found.pop()
    # The first scales of several shapes are the same.
    largest = largest_map(sampling["ratio"])
    if largest not in found:
        raise ModelSpecError(
            f"{folder / 'meta.json'}: sampling.ratio {sampling['ratio']} is no shape of its schedule"
        )
    return largest
