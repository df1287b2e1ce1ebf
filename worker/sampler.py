"""Generation of the codes of a batch, scale by scale.

`sample_codes` reads: for each scale, run the transformer, guide the logits, draw the bits, add their codes.
The steps stand alone too, so that a verification can feed recorded bits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from toprovar_batch.kernels.flash_attention import TokenLayout
from toprovar_batch.kernels.ops import PYTORCH, Backend, sample_bits

from .errors import ModelSpecError
from .infinity.bsq import ResidualSum, tokens_to_bit_maps
from .infinity.kv_cache import KVCache
from .infinity.rope import rope_2d
from .infinity.schedule import SCHEDULES_1M, ScaleSchedule
from .infinity.transformer import Infinity, TextContext


@dataclass(frozen=True)
class SamplingSettings:
    """How bits are drawn, resolved for one schedule: one value a scale.

    Attributes:
        cfg_scale: guidance, guided = cfg * cond + (1 - cfg) * uncond.
        temperature: divides the logits.
        top_p: makes bits certain whose unlikely value has probability <= 1 - top_p; 0 and 1: off.
        greedy: take the likelier value of every bit.
        cfg_insertion_layers: 0 guides the logits; -k guides the output of block depth - k.
    """

    cfg_scale: tuple[float, ...]
    temperature: tuple[float, ...]
    top_p: float = 0.97
    greedy: bool = False
    cfg_insertion_layers: tuple[int, ...] = (0,)

    @property
    def guided(self) -> bool:
        """Whether there is an unconditional branch at all."""
        return any(cfg != 1 for cfg in self.cfg_scale)


def per_scale(value: float | Sequence[float], count: int, name: str) -> tuple[float, ...]:
    """One value for each of `count` scales.

    Raises:
        ModelSpecError: a list of another length; names the setting.
    """
    if isinstance(value, (int, float)):
        return (float(value),) * count
    if len(value) != count:
        raise ModelSpecError(f"{name}: the schedule has {count} scales, but {len(value)} values are given")
    return tuple(float(each) for each in value)


def text_rows(
    model: Infinity, prompts: Sequence[Tensor], negatives: Sequence[Tensor | None], *, guided: bool
) -> list[Tensor]:
    """Features of every row of a batch: the prompts, then (where guided) what stands in for them.

    Args:
        model: holds the learned unconditional features.
        prompts: [n, Ct5] a prompt.
        negatives: features of negative prompts; None takes the learned ones at the prompt's length.
        guided: whether there is a second half.
    """
    rows = list(prompts)
    if guided:
        rows += [
            model.unconditional_features(len(prompt)) if negative is None else negative
            for prompt, negative in zip(prompts, negatives, strict=True)
        ]
    return rows


@dataclass
class ScaleOutput:
    """What the transformer gives at one scale.

    Attributes:
        logits: [R, L, 2D] float32 before temperature and guidance; only the conditional rows where they are
            all that is needed.
        guided: [B, L, 2D] float32, divided by the temperature.
        entropies: per layer [R, L] float32 nats; empty unless asked for.
    """

    logits: Tensor
    guided: Tensor
    entropies: list[Tensor] = field(default_factory=list)


class BatchState:
    """A batch between two scales: its text, caches and the sum of its codes.

    Attributes:
        finite: [B] bool, False for an image that met a logit that is no finite number.
    """

    def __init__(
        self,
        model: Infinity,
        text: TextContext,
        schedule: ScaleSchedule,
        settings: SamplingSettings,
        *,
        codebook_dim: int,
        spatial_patchify: bool,
        backend: Backend = PYTORCH,
    ) -> None:
        """Reserve the caches of a batch.

        Args:
            model: the transformer.
            text: of all R rows, conditional ones first.
            schedule: token map sizes, coarse to fine.
            settings: resolved for the schedule.
            codebook_dim: code bits z.
            spatial_patchify: whether a token holds 2 x 2 codes.
            backend: of the attention.
        """
        self.model, self.text, self.schedule, self.settings = model, text, schedule, settings
        self.spatial_patchify = spatial_patchify
        self.num_rows = text.cond.shape[0]
        self.batch = self.num_rows // 2 if settings.guided else self.num_rows
        kept = sum(h * w for h, w in schedule[:-1])
        self.cache = KVCache(model.sizes, self.num_rows, kept, model.device, model.dtype, backend)
        self.codes = ResidualSum(schedule, self.batch, codebook_dim, spatial_patchify, model.device)
        self.finite = torch.ones(self.batch, dtype=torch.bool, device=model.device)
        # Positions are spread over the last map of the 1M schedule of this shape, whatever is generated.
        self._largest = next(full[-1] for full in SCHEDULES_1M.values() if full[: len(schedule)] == schedule)

    def run_scale(self, scale_index: int, *, with_entropy: bool = False) -> ScaleOutput:
        """Run the transformer on all tokens of a scale; `add_bits` of the scale before must have been called."""
        model, settings = self.model, self.settings
        height, width = self.schedule[scale_index]
        layout = TokenLayout.dense(self.num_rows, height * width, model.device)
        rotation = rope_2d((height, width), self._largest, model.sizes.head_dim, model.device)
        if scale_index == len(self.schedule) - 1:
            self.cache.stop_storing()
        x = self._embed(scale_index)
        cfg = settings.cfg_scale[scale_index]
        entropies = []
        for layer, block in enumerate(model.blocks):
            x, entropy = block(
                x,
                self.text.blocks[layer],
                self.text.text_lengths,
                layout,
                rotation,
                self.cache,
                layer,
                with_entropy=with_entropy,
            )
            if entropy is not None:
                entropies.append(layout.by_row(entropy))
            if cfg != 1 and layer - model.sizes.depth in settings.cfg_insertion_layers:
                cond, uncond = x.unflatten(0, (2, -1))
                x = (cfg * cond + (1 - cfg) * uncond).repeat(2, 1)
        return self._guide(x, scale_index, layout, entropies)

    def _embed(self, scale_index: int) -> Tensor:
        """[T, C] input of a scale, the same tokens for both branches."""
        if scale_index == 0:
            return self.model.embed_first(self.text)
        embedded = self.model.embed(self.codes.tokens(scale_index), scale_index)  # [B, L, C]
        return embedded.repeat(self.num_rows // self.batch, 1, 1).flatten(0, 1)

    def _guide(
        self, x: Tensor, scale_index: int, layout: TokenLayout, entropies: list[Tensor]
    ) -> ScaleOutput:
        settings = self.settings
        cfg = settings.cfg_scale[scale_index]
        on_logits = cfg != 1 and 0 in settings.cfg_insertion_layers
        rows = self.num_rows if on_logits else self.batch
        length = x.shape[0] // self.num_rows
        head_layout = TokenLayout.dense(rows, length, layout.device)
        logits = self.model.logits(x[: rows * length], self.text.cond[:rows], head_layout)
        logits = head_layout.by_row(logits)
        tempered = logits / settings.temperature[scale_index]
        if on_logits:
            cond, uncond = tempered.chunk(2)
            tempered = cfg * cond + (1 - cfg) * uncond
        self.finite &= tempered.isfinite().all(dim=-1).all(dim=-1)
        return ScaleOutput(logits, tempered, entropies)

    def add_bits(self, scale_index: int, bits: Tensor) -> None:
        """Add a scale's bits ([B, L, D]) to the sum of codes."""
        maps = tokens_to_bit_maps(bits, self.schedule[scale_index], self.spatial_patchify)
        self.codes.add(scale_index, maps)


def sample_codes(state: BatchState, seeds: Tensor, on_scale: Callable[[int], None] | None = None) -> Tensor:
    """Generate a batch.

    Args:
        state: a fresh batch.
        seeds: [B] int64 on the model's device.
        on_scale: called with each scale's index once its work is queued.

    Returns:
        [B, z, H, W] float32: the summed codes, which the VAE decodes.
    """
    settings = state.settings
    for scale_index in range(len(state.schedule)):
        output = state.run_scale(scale_index)
        bits = sample_bits(output.guided, seeds, scale_index, top_p=settings.top_p, greedy=settings.greedy)
        state.add_bits(scale_index, bits)
        if on_scale is not None:
            on_scale(scale_index)
    return state.codes.summed_codes
