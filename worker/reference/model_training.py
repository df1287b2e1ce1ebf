"""Stage 2: the transformer with bitwise self-correction, and its text encoder, jointly."""

import copy
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    interpolate,
    pad,
    scaled_dot_product_attention,
)

from toprovar_batch.kernels.flash_attention import KeyLengths, TokenLayout
from toprovar_batch.kernels.ops import PYTORCH
from toprovar_batch.worker.infinity.bsq import ResidualSum, code_maps_to_tokens
from toprovar_batch.worker.infinity.checkpoint import save_shards
from toprovar_batch.worker.infinity.config import ModelPreset
from toprovar_batch.worker.infinity.rope import rope_2d
from toprovar_batch.worker.infinity.schedule import ScaleSchedule, scale_schedule
from toprovar_batch.worker.infinity.transformer import Infinity, TextContext
from toprovar_batch.worker.infinity.vae import Vae
from toprovar_batch.worker.models import load_transformer, load_vae

from . import data_parallel
from .scene_stream import render_pixels, scene_batches
from .schedule import AveragedWeights, TimedCosine
from .text_training import build_text_encoder, build_tokenizer, load_text, text_features

_SHARD_BYTES = 15 << 20
_INIT_STD = 0.02
_TEXT_MULTIPLE = 64
# A run that is cut off leaves what it has learnt, though without the end of its cosine.
_SAVE_EVERY_S = 100.0


@dataclass(frozen=True)
class ModelTrainingSettings:
    """The recipe of stage 2.

    Attributes:
        minutes: of this run.
        start, stop: the part of the whole learning-rate cosine that this run covers.
        scales: train only so many, the coarsest, which decide what is where; None trains all.
        batch_size: pictures a step and process.
        peak_rate: learning rate of AdamW at its largest.
        max_flip: each sample's bits are flipped with a probability drawn from [0, max_flip].
        caption_drop: fraction of samples trained without their caption, for guidance.
        new_every: steps for each newly rendered batch; the others draw from what was rendered before.
        capacity: pictures kept, as features of the VAE.
        seed: of the scenes; another one for each run.
        num_workers: processes that make scenes.
    """

    minutes: float = 8.0
    start: float = 0.0
    stop: float = 1.0
    scales: int | None = None
    batch_size: int = 64
    peak_rate: float = 1.2e-3
    max_flip: float = 0.3
    caption_drop: float = 0.1
    new_every: int = 2
    capacity: int = 60_000
    seed: int = 101
    num_workers: int = 0


class TeacherForcing:
    """Self-attention over all scales at once: a token sees its own scale and the earlier ones."""

    backend = PYTORCH

    def __init__(self, schedule: ScaleSchedule) -> None:
        self._bounds = list(pairwise((0, *accumulate(h * w for h, w in schedule))))

    def attend(
        self, _layer: int, q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout, *, with_entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        """See `SelfAttentionMemory`; every row holds all tokens of all scales, and no entropy is measured."""
        assert not with_entropy
        q, k, v = (layout.by_row(x).transpose(1, 2) for x in (q, k, v))  # [R, H, L, D]
        scales = [
            scaled_dot_product_attention(q[:, :, start:stop], k[:, :, :stop], v[:, :, :stop], scale=1.0)
            for start, stop in self._bounds
        ]
        return torch.cat(scales, dim=2).transpose(1, 2).flatten(0, 1), None


@dataclass(frozen=True)
class TrainingTokens:
    """What teacher forcing feeds and asks for.

    Attributes:
        inputs: for each scale after the first, [B, L, D] float32: the resized sum of (partly flipped) codes.
        targets: [B, total L, D] bool: the bits that correct what the flips did.
    """

    inputs: list[Tensor]
    targets: Tensor


def corrupt(
    features: Tensor, schedule: ScaleSchedule, max_flip: float, scales: int | None = None
) -> TrainingTokens:
    """Quantise features with random flips whose errors the later scales must correct (Infinity, sec. 3.3).

    Args:
        features: [B, z, H, W] of the VAE's encoder.
        schedule: token map sizes.
        max_flip: largest flip probability of a sample.
        scales: only so many, the coarsest; they do not depend on the others.
    """
    total = ResidualSum(schedule, features.shape[0], features.shape[1], False, features.device)
    flip = torch.rand(features.shape[0], 1, 1, 1, device=features.device) * max_flip
    inputs, targets = [], []
    for scale_index, size in enumerate(schedule[:scales]):
        if scale_index:
            inputs.append(total.tokens(scale_index))
        bits = interpolate(features - total.summed_codes, size, mode="area") > 0
        targets.append(code_maps_to_tokens(bits, False))
        total.add(scale_index, bits ^ (torch.rand(bits.shape, device=bits.device) < flip))
    return TrainingTokens(inputs, torch.cat(targets, dim=1))


def all_rotations(schedule: ScaleSchedule, head_dim: int, device: torch.device) -> Tensor:
    """[total L, D / 2] complex64: the rotations of all scales, one after the other."""
    largest = scale_schedule(1.0, "1M")[-1]
    return torch.cat([rope_2d(size, largest, head_dim, device) for size in schedule])


class PaddedKeys(KeyLengths):
    """Text lengths as a mask alone: compiled code that knew the numbers would be compiled anew for every batch."""

    def __init__(self, mask: Tensor) -> None:
        """Take a [R, 1, 1, N] boolean mask, True where a key is seen."""
        super().__init__((mask.shape[-1],) * mask.shape[0], mask.device)
        self.__dict__["mask"] = mask


def padded_text(text: TextContext, multiple: int) -> TextContext:
    """The same text with its keys and values [R, H, N, D] padded to a multiple of `multiple` tokens."""
    lengths = torch.tensor(text.text_lengths.lengths, device=text.cond.device)
    longest = max(text.text_lengths.lengths)
    size = -(-longest // multiple) * multiple
    extra = (0, 0, 0, size - longest)
    blocks = tuple(
        replace(block, text_keys=pad(block.text_keys, extra), text_values=pad(block.text_values, extra))
        for block in text.blocks
    )
    mask = torch.arange(size, device=lengths.device) < lengths[:, None]
    return TextContext(text.cond, PaddedKeys(mask[:, None, None, :]), blocks)


def teacher_forced_logits(
    model: Infinity, text: TextContext, inputs: Sequence[Tensor], schedule: ScaleSchedule, rotations: Tensor
) -> Tensor:
    """[B * total L, 2D] logits of all scales in one pass."""
    parts = [model.embed_first(text)[:, None]]
    parts += [model.embed(tokens, scale_index) for scale_index, tokens in enumerate(inputs, start=1)]
    x = torch.cat(parts, dim=1)  # [B, total L, C]
    layout = TokenLayout.dense(x.shape[0], x.shape[1], x.device)
    x = x.flatten(0, 1)
    memory = TeacherForcing(schedule)
    for block, context in zip(model.blocks, text.blocks, strict=True):
        # One number for all layers, which this memory ignores: the blocks then share one compiled form.
        x, _ = block(x, context, text.text_lengths, layout, rotations, memory, 0, with_entropy=False)
    return model.logits(x, text.cond, layout)


def scale_weights(schedule: ScaleSchedule, device: torch.device) -> Tensor:
    """[total L] weights of the tokens with mean 1: a scale of n tokens counts as much as sqrt(n).

    The few tokens of the coarse scales decide what is in the picture; equal weights would let the finest scale,
    two fifths of all tokens, drown them.
    """
    weights = torch.cat([torch.full((h * w,), (h * w) ** -0.5) for h, w in schedule])
    return (weights / weights.mean()).to(device)


def bit_loss(logits: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy of the bits, and which bits are right.

    Args:
        logits: [B * L, 2D].
        targets: [B, L, D] bool.
        weights: [L].

    Returns:
        The loss, and [L] the fraction of right bits of every token.
    """
    zero, one = logits.float().unflatten(-1, (-1, 2)).unbind(-1)
    margin = (one - zero).view(targets.shape)
    losses = binary_cross_entropy_with_logits(margin, targets.float(), reduction="none").mean(dim=(0, 2))
    right = ((margin > 0) == targets).float().mean(dim=(0, 2))
    return (losses * weights).mean(), right.detach()


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


class FeaturePool:
    """The VAE features of rendered scenes and their captions, drawn again and again while new ones come in."""

    def __init__(self, capacity: int, shape: Sequence[int], device: torch.device, seed: int) -> None:
        self._features = torch.empty((capacity, *shape), dtype=torch.float16, device=device)
        self._captions = [""] * capacity
        self._added = 0
        self._random = random.Random(seed)

    def add(self, features: Tensor, captions: Sequence[str]) -> None:
        """Take in a batch, in place of the oldest when full."""
        for row, text in enumerate(captions):
            place = self._added % len(self._captions)
            self._features[place] = features[row].half()
            self._captions[place] = text
            self._added += 1

    def draw(self, count: int) -> tuple[Tensor, list[str]]:
        """Random features [count, z, H, W] float32 and their captions."""
        filled = min(self._added, len(self._captions))
        places = [self._random.randrange(filled) for _ in range(count)]
        return self._features[places].float(), [self._captions[place] for place in places]


class ReferenceModel(nn.Module):
    """Transformer and text encoder as one trainable module."""

    def __init__(self, transformer: Infinity, text_encoder: Any) -> None:
        super().__init__()
        self.transformer = transformer
        self.text_encoder = text_encoder

    def loss(
        self,
        tokenizer: Any,
        captions: Sequence[str],
        dropped: Sequence[bool],
        tokens: TrainingTokens,
        schedule: ScaleSchedule,
        rotations: Tensor,
        weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Loss of a batch; `dropped` captions are replaced by the unconditional features."""
        features = text_features(tokenizer, self.text_encoder, list(captions), rotations.device)
        features = [
            self.transformer.unconditional_features(len(row)) if drop else row
            for row, drop in zip(features, dropped, strict=True)
        ]
        text = padded_text(self.transformer.encode_text(features), _TEXT_MULTIPLE)
        logits = teacher_forced_logits(self.transformer, text, tokens.inputs, schedule, rotations)
        return bit_loss(logits, tokens.targets, weights)


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


def _parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Weight decay for matrices only."""
    named = list(model.named_parameters())
    decayed = [p for name, p in named if p.dim() == 2 and "embed" not in name and "cfg_uncond" not in name]
    chosen = {id(p) for p in decayed}
    others = [p for _, p in named if id(p) not in chosen]
    return [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]


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
        The record: settings, steps, seconds, the last losses and the fraction of right bits a scale; empty on all
        processes but the first.
    """
    torch.manual_seed(settings.seed)
    model, tokenizer = _build(preset, resume, device)
    own_seed = settings.seed + 1_000 * data_parallel.rank()  # the same start, other pictures and flips
    torch.manual_seed(own_seed)
    low = torch.bfloat16 if device.type == "cuda" else torch.float32
    vae = load_vae(preset.vae, vae_file, device, low, with_encoder=True)
    schedule = scale_schedule(1.0, preset.resolution)
    trained = schedule[: settings.scales]
    rotations = all_rotations(trained, preset.transformer.head_dim, device)
    weights = scale_weights(trained, device)
    optimizer = torch.optim.AdamW(
        _parameter_groups(model), lr=0.0, betas=(0.9, 0.95), fused=device.type == "cuda"
    )
    averaged = AveragedWeights(model, 0.999)
    _compile_blocks(model.transformer, device)
    pool = FeaturePool(settings.capacity, (preset.vae.codebook_dim, *schedule[-1]), device, own_seed)
    fresh = scene_batches(own_seed, settings.batch_size, 1_000_000, num_workers=settings.num_workers)
    clock = TimedCosine(settings.peak_rate, settings.minutes, start=settings.start, stop=settings.stop)
    dice = random.Random(own_seed)
    step, saved_at = 0, 0.0
    history: list[list[float]] = []
    record: dict[str, Any] = {}
    finished = False
    while not finished:
        if step < 40 or step % settings.new_every == 0:
            _render_into(pool, next(fresh), vae, 16 * schedule[-1][0], device)
        features, captions = pool.draw(settings.batch_size)
        tokens = corrupt(features, schedule, settings.max_flip, settings.scales)
        dropped = [dice.random() < settings.caption_drop for _ in captions]
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss, right = model.loss(tokenizer, captions, dropped, tokens, trained, rotations, weights)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        data_parallel.average_gradients(model.parameters())
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        now = data_parallel.of_first(clock.elapsed)
        for group in optimizer.param_groups:
            group["lr"] = clock.rate_at(now)
        optimizer.step()
        averaged.update(model)
        step += 1
        if step == 1:
            clock.restart()
        finished = step > 1 and clock.over_at(now)
        if data_parallel.rank() == 0 and (step % 50 == 0 or finished):
            accuracy = [part.mean().item() for part in right.split([h * w for h, w in trained])]
            history.append([step, round(now, 1), round(loss.item(), 5)])
            print(
                f"{now:6.0f} s  step {step:5d}  loss {loss.item():.4f}  norm {norm:.2f}  bits",
                *(f"{value:.3f}" for value in accuracy),
                flush=True,
            )
            record = {
                "settings": asdict(settings),
                "processes": data_parallel.processes(),
                "steps": step,
                "seconds": now,
                "right_bits": accuracy,
                "history": history,
            }
            if finished or now - saved_at > _SAVE_EVERY_S:
                saved_at = now
                _save(averaged.module, tokenizer, output, record)
    return record


def _compile_blocks(model: Infinity, device: torch.device) -> None:
    """On a GPU; all blocks share one compiled form for each padded length of the text."""
    if device.type == "cuda":
        for block in model.blocks:
            block.compile(dynamic=False)


@torch.inference_mode()
def _render_into(pool: FeaturePool, batch: Any, vae: Vae, side: int, device: torch.device) -> None:
    images = render_pixels(batch, side, device)
    for part, start in zip(images.split(32), range(0, len(images), 32), strict=True):
        pool.add(vae.encoder(part.to(vae.dtype)), batch.captions[start : start + len(part)])


def _save(model: ReferenceModel, tokenizer: Any, output: Path, record: dict[str, Any]) -> None:
    low = copy.deepcopy(model).to(torch.bfloat16)
    save_shards(low.transformer, output / "transformer", _SHARD_BYTES)
    low.text_encoder.save_pretrained(output / "text_encoder")
    tokenizer.save_pretrained(output / "text_encoder")
    (output / "training.json").write_text(json.dumps(record, indent=2) + "\n")
