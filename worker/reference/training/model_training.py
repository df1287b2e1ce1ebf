"""Stage 2: the transformer with bitwise self-correction, and its text encoder, jointly."""

import copy
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toprovar_batch.worker.infinity.checkpoint import save_shards
from toprovar_batch.worker.infinity.schedule import scale_schedule
from toprovar_batch.worker.infinity.transformer import Infinity
from toprovar_batch.worker.models import load_transformer, load_vae
from toprovar_batch.worker.presets import ModelPreset
from toprovar_batch.worker.whole_file import write_whole

from . import data_parallel
from .feature_pool import FeaturePool, PoolFiller
from .muon import Muon
from .scene_stream import scene_batches
from .schedule import AveragedWeights, TimedCosine
from .teacher_forcing import TransformerLoss, capture, corrupt
from .text_training import build_text_encoder, build_tokenizer, encode_captions, load_text

_SHARD_BYTES = 15 << 20
_INIT_STD = 0.02
# One length for all captions, so that one compiled form serves every batch; the scenes' longest has 115 or so.
_TEXT_TOKENS = 128
_FRESH = 64
# A run that is cut off leaves what it has learnt, though without the end of its cosine.
_SAVE_EVERY_S = 100.0


@dataclass(frozen=True)
class ModelTrainingSettings:
    """The recipe of stage 2.

    Attributes:
        minutes: of this run.
        start, stop: the part of the whole learning-rate cosine that this run covers.
        scales: train only so many, the coarsest, which decide what is where; None trains all.
        batch_size: pictures per step and process.
        peak_rate: learning rate of AdamW at its largest: embeddings, biases and the head.
        matrix_rate: of Muon, which trains the matrices between them, in AdamW's units.
        max_flip: each sample's bits are flipped with a probability drawn from [0, max_flip].
        caption_drop: fraction of samples trained without their caption, for guidance.
        new_every: steps for each 64 newly rendered pictures; all batches draw from what was rendered so far.
        prefill: pictures rendered before the first step.
        capacity: pictures kept, as features of the VAE.
        seed: of the scenes; another one for each run.
        num_workers: processes that make scenes.
        capture: on a GPU, record forward and backward as CUDA graphs: launched one by one, they keep it half idle.
    """

    minutes: float = 8.0
    start: float = 0.0
    stop: float = 1.0
    scales: int | None = None
    batch_size: int = 64
    peak_rate: float = 1.5e-3
    matrix_rate: float = 2e-3
    max_flip: float = 0.3
    caption_drop: float = 0.1
    new_every: int = 4
    prefill: int = 4_096
    capacity: int = 200_000
    seed: int = 101
    num_workers: int = 0
    capture: bool = True


def initialize_for_training(model: Infinity) -> None:
    """Small normal weights, residual branches that start quiet, no biases."""
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            if name.endswith(("bias", "q_bias", "v_bias")):
                parameter.zero_()
            elif name.endswith("scale_mul_1H11"):
                parameter.fill_(4.0).log_()
            elif name.endswith(("ca_norm.weight", "text_norm.weight")):
                parameter.fill_(1.0)
            else:
                parameter.normal_(0, _INIT_STD)
            if name.endswith(("sa.proj.weight", "ca.proj.weight", "fc2.weight")):
                parameter.mul_((2 * model.sizes.depth) ** -0.5)
            if name.endswith("ada_gss"):
                parameter[:, :, :2] += 1.0


class ReferenceModel(nn.Module):
    """Transformer and text encoder as one trainable module."""

    def __init__(self, transformer: Infinity, text_encoder: Any) -> None:
        super().__init__()
        self.transformer = transformer
        self.text_encoder = text_encoder


def _build(preset: ModelPreset, resume: Path | None, device: torch.device) -> tuple[ReferenceModel, Any]:
    if resume is None:
        tokenizer = build_tokenizer()
        transformer = Infinity(preset.transformer)
        initialize_for_training(transformer)
        encoder = build_text_encoder(preset.text_encoder, len(tokenizer))
    else:
        tokenizer, encoder = load_text(resume / "text_encoder")
        transformer = load_transformer(preset.transformer, resume / "transformer", device, torch.float32)
    return ReferenceModel(transformer, encoder).to(device).train().requires_grad_(True), tokenizer


_NOT_MATRICES = ("embed", "cfg_uncond", "shared.weight", "relative_attention_bias", "transformer.head")


def build_optimizers(model: ReferenceModel, settings: ModelTrainingSettings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices between embeddings and head, AdamW for the rest; each group knows its `peak` rate."""
    text_queries: list[nn.Parameter] = []
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.dim() != 2 or any(part in name for part in _NOT_MATRICES):
            others.append(parameter)
        elif name.endswith("SelfAttention.q.weight"):
            text_queries.append(parameter)
        else:
            matrices.append(parameter)
    # T5 does not divide its scores by the root of the head size: its queries are that much smaller, as are their
    # steps. Full steps make the scores so large that the biases of the places are lost.
    query_rate = settings.matrix_rate * float(model.text_encoder.config.d_kv) ** -0.5
    groups = [
        {"params": matrices, "peak": settings.matrix_rate},
        {"params": text_queries, "peak": query_rate},
    ]
    muon = Muon(groups, lr=0.0, weight_decay=0.05)
    adamw = torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.95), weight_decay=0.0, fused=others[0].is_cuda)
    adamw.param_groups[0]["peak"] = settings.peak_rate
    return [muon, adamw]


class ModelTraining:
    """All that one process trains with, and a step of it."""

    def __init__(
        self,
        preset: ModelPreset,
        settings: ModelTrainingSettings,
        vae_file: Path,
        device: torch.device,
        resume: Path | None,
    ) -> None:
        """Build everything and render the first pictures; see `train_model`."""
        torch.manual_seed(settings.seed)
        self._settings, self._device = settings, device
        self.model, self.tokenizer = _build(preset, resume, device)
        own_seed = settings.seed + 1_000 * data_parallel.rank()  # the same start, other pictures and flips
        torch.manual_seed(own_seed)
        self._schedule = scale_schedule(1.0, preset.resolution)
        self.trained = self._schedule[: settings.scales]
        self._optimizers = build_optimizers(self.model, settings)
        self.averaged = AveragedWeights(self.model, 0.999)
        shape = (preset.vae.codebook_dim, *self._schedule[-1])
        self._pool = FeaturePool(settings.capacity, shape, _TEXT_TOKENS, device, own_seed)
        self._filler = self._build_filler(preset, vae_file, own_seed)
        for _ in range(-(-settings.prefill // _FRESH)):
            self._filler.add_batch()
        self._loss = TransformerLoss(self.model.transformer, self.trained, device)
        self._forward: Callable[..., tuple[Tensor, Tensor]] | None = None
        self.steps = 0

    def _build_filler(self, preset: ModelPreset, vae_file: Path, seed: int) -> PoolFiller:
        on_gpu = self._device.type == "cuda"
        dtype = torch.bfloat16 if on_gpu else torch.float32
        vae = load_vae(preset.vae, vae_file, self._device, dtype, with_encoder=True)
        vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if on_gpu:
            vae.encoder.compile(dynamic=False)
        scenes = scene_batches(seed, _FRESH, 1_000_000, num_workers=self._settings.num_workers)
        side = 16 * self._schedule[-1][0]
        return PoolFiller(self._pool, scenes, vae, self.tokenizer, side, _TEXT_TOKENS)

    def step(self, rate: float) -> tuple[Tensor, Tensor]:
        """Train on one batch.

        Args:
            rate: factor on the peak learning rates.

        Returns:
            The loss, and [total L] the fraction of right bits of every token.
        """
        settings = self._settings
        if self.steps % settings.new_every == 0:
            self._filler.add_batch()
        drawn = self._pool.draw(settings.batch_size)
        tokens = corrupt(drawn.features, self._schedule, settings.max_flip, settings.scales)
        dropped = torch.rand(settings.batch_size, device=self._device) < settings.caption_drop
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type == "cuda"):
            features = encode_captions(self.model.text_encoder, drawn.ids, drawn.seen)
        arguments = (features, drawn.seen, dropped, tokens.targets, *tokens.inputs)
        if self._forward is None:
            self._forward = self._prepare(arguments)
        loss, right = self._forward(*arguments)
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        data_parallel.average_gradients(self.model.parameters())
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["peak"]
            optimizer.step()
        self.averaged.update(self.model)
        self.steps += 1
        return loss.detach(), right.detach()

    def _prepare(self, arguments: tuple[Tensor, ...]) -> Callable[..., tuple[Tensor, Tensor]]:
        if self._device.type != "cuda":
            return self._loss
        self._loss.compile_parts()
        return capture(self._loss, arguments) if self._settings.capture else self._loss


def train_model(
    preset: ModelPreset,
    settings: ModelTrainingSettings,
    vae_file: Path,
    output: Path,
    device: torch.device,
    resume: Path | None = None,
) -> dict[str, Any]:
    """Train, and save the averaged weights as the folders `transformer` and `text_encoder`.

    Args:
        preset: sizes of all parts, and the resolution.
        settings: the recipe.
        vae_file: a trained VAE with its encoder.
        output: folder to write; holds `training.json` too.
        device: to train on.
        resume: the output of an earlier run to go on from.

    Returns:
        The record: settings, steps, seconds, the last losses and the fraction of right bits per scale; empty on all
        processes but the first.
    """
    training = ModelTraining(preset, settings, vae_file, device, resume)
    clock = TimedCosine(1.0, settings.minutes, start=settings.start, stop=settings.stop)
    sizes = [h * w for h, w in training.trained]
    history: list[list[float]] = []
    record: dict[str, Any] = {}
    saved_at = 0.0
    finished = False
    while not finished:
        now = data_parallel.of_first(clock.elapsed)
        loss, right = training.step(clock.rate_at(now))
        if training.steps == 1:
            clock.restart()
        finished = training.steps > 1 and clock.over_at(now)
        if data_parallel.rank() == 0 and (training.steps % 50 == 0 or finished):
            accuracy = [part.mean().item() for part in right.split(sizes)]
            history.append([training.steps, round(now, 1), round(loss.item(), 5)])
            shown = " ".join(f"{value:.3f}" for value in accuracy)
            print(f"{now:6.0f} s  step {training.steps:5d}  loss {loss.item():.4f}  bits {shown}", flush=True)
            record = {
                "settings": asdict(settings),
                "processes": data_parallel.processes(),
                "steps": training.steps,
                "seconds": now,
                "right_bits": accuracy,
                "history": history,
            }
            if finished or now - saved_at > _SAVE_EVERY_S:
                saved_at = now
                _save(training.averaged.module, training.tokenizer, output, record)
    return record


def _save(model: ReferenceModel, tokenizer: Any, output: Path, record: dict[str, Any]) -> None:
    low = copy.deepcopy(model).to(torch.bfloat16)
    save_shards(low.transformer, output / "transformer", _SHARD_BYTES)
    low.text_encoder.save_pretrained(output / "text_encoder")
    tokenizer.save_pretrained(output / "text_encoder")
    write_whole(output / "training.json", json.dumps(record, indent=2) + "\n")
