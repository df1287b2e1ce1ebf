"""Generation of the codes of a batch, scale by scale.

`sample_codes` reads: for each scale, plan what runs, run the transformer, guide the logits, draw the bits, add their
codes. The steps stand alone too, so that a verification can feed recorded bits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from toprovar_batch.kernels.layout import TokenLayout
from toprovar_batch.kernels.ops import Backend, sample_bits

from .errors import ModelSpecError
from .infinity.bsq import ResidualSum, tokens_to_bit_maps
from .infinity.kv_cache import KVCache
from .infinity.rope import rope_2d
from .infinity.schedule import SCHEDULES_1M, ScaleSchedule
from .infinity.transformer import Infinity, TextContext
from .pruning.history import BatchHistory, count_layers
from .pruning.packing import LayerTokens, PackedScale
from .pruning.plan import ScalePlan
from .pruning.policies.base import BatchContext, PruningPolicy
from .pruning.policies.dense import DensePolicy
from .pruning.restoration import LayerChanges


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
    """What the transformer gives at one scale, for the P prompts that run in it.

    Attributes:
        logits: [A, L, 2D] float32 before temperature and guidance, of the rows that run; only the conditional ones
            where they are all that is needed.
        guided: [P, L, 2D] float32, divided by the temperature.
        packed: which rows and prompts these are.
        layers_run: [P, L] int64, how many layers each token ran; None where nobody asks.
        entropies: per layer [R, L] float32 nats; empty unless asked for.
    """

    logits: Tensor
    guided: Tensor
    packed: PackedScale
    layers_run: Tensor | None = None
    entropies: list[Tensor] = field(default_factory=list)


class BatchState:
    """A batch between two scales: its text, caches and the sum of its codes.

    Attributes:
        finite: [B] bool, False for an image that met a logit that is no finite number.
        history: what has run.
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
        backend: Backend,
        count_layers: bool = False,
    ) -> None:
        """Reserve the caches of a batch.

        Args:
            model: the transformer.
            text: of all R rows, conditional ones first.
            schedule: token map sizes, coarse to fine.
            settings: resolved for the schedule.
            codebook_dim: code bits z.
            spatial_patchify: whether a token holds 2 x 2 codes.
            backend: of the kernels.
            count_layers: count for the history how many layers each token runs.
        """
        self.model, self.text, self.schedule, self.settings = model, text, schedule, settings
        self.spatial_patchify = spatial_patchify
        self.num_rows = text.cond.shape[0]
        self.batch = self.num_rows // 2 if settings.guided else self.num_rows
        *earlier, last = (h * w for h, w in schedule)
        self.cache = KVCache(
            model.sizes, self.num_rows, sum(earlier), last, model.device, model.dtype, backend
        )
        self.codes = ResidualSum(schedule, self.batch, codebook_dim, spatial_patchify, model.device)
        self.finite = torch.ones(self.batch, dtype=torch.bool, device=model.device)
        self.history = BatchHistory(schedule, guided=settings.guided)
        self._count_layers = count_layers
        self._changes = LayerChanges(model.sizes.depth, self.batch)
        # Positions are spread over the last map of the 1M schedule of this shape, whatever is generated.
        self._largest = next(full[-1] for full in SCHEDULES_1M.values() if full[: len(schedule)] == schedule)

    def run_scale(
        self,
        scale_index: int,
        plan: ScalePlan | None = None,
        observe: Callable[[int, int, Tensor], None] | None = None,
        *,
        with_entropy: bool = False,
    ) -> ScaleOutput:
        """Run the transformer on a scale; `add_bits` of the scale before must have been called.

        Args:
            scale_index: counted from 0.
            plan: what runs, of at least one prompt; None: all tokens of all prompts.
            observe: takes (scale, layer, entropy [n, N]) of the prompts in the plan's `entropy_of`.
            with_entropy: give every row's entropies, for which the plan must be dense.
        """
        model = self.model
        size = self.schedule[scale_index]
        if plan is None:
            plan = ScalePlan.dense(size[0] * size[1], model.sizes.depth, self.batch)
        packed = PackedScale(plan, self.num_rows, model.device)
        rotation = rope_2d(size, self._largest, model.sizes.head_dim, model.device)
        if scale_index == len(self.schedule) - 1:
            self.cache.enter_last_scale()
        x = self._embed(scale_index, packed)
        cfg = self.settings.cfg_scale[scale_index]
        # A prompt's conditional row has its number.
        entropy_rows = tuple(range(self.num_rows)) if with_entropy else plan.entropy_of
        entropies, run = [], []
        for layer in range(model.sizes.depth):
            tokens = packed.layer_tokens(layer, x)
            run.append(tokens)
            x, entropy = self._run_layer(layer, x, size, packed, tokens, rotation, entropy_rows)
            if entropy is not None:
                maps = entropy.unflatten(0, (len(entropy_rows), -1))
                if with_entropy:
                    entropies.append(maps)
                elif observe is not None:
                    observe(scale_index, layer, maps)
            if cfg != 1 and layer - model.sizes.depth in self.settings.cfg_insertion_layers:
                x = _guide_states(x, packed, cfg)
        counted = self._count_layers or plan.code_layers > 0
        layers_run = count_layers(packed, run) if counted else None
        return self._guide(x, scale_index, packed, layers_run, entropies)

    def _run_layer(
        self,
        layer: int,
        x: Tensor,
        size: tuple[int, int],
        packed: PackedScale,
        tokens: LayerTokens | None,
        rotation: Tensor,
        entropy_rows: Sequence[int],
    ) -> tuple[Tensor, Tensor | None]:
        """Run a block on some tokens of the hidden state [A * N, C]; the others pass, or are restored."""
        after, entropy = x, None
        if tokens is not None:
            inputs = x if tokens.positions is None else x[tokens.positions]
            after, entropy = self.model.blocks[layer](
                inputs,
                self.text.blocks[layer],
                self.text.text_lengths,
                tokens.layout,
                rotation,
                self.cache,
                layer,
                entropy_rows=entropy_rows,
            )
        if tokens is None or tokens.positions is not None:
            others = self._changes.restore(layer, size, packed, tokens, x) if packed.plan.restore else x
            if tokens is not None and tokens.positions is not None:
                if others is x and packed.plan.changes_of:
                    others = x.clone()  # x is compared with the output below
                others = others.index_copy_(0, tokens.positions, after)
            after = others
        if packed.plan.changes_of:
            self._changes.keep(layer, size, packed, x, after)
        return after, entropy

    def _embed(self, scale_index: int, packed: PackedScale) -> Tensor:
        """[A * N, C] input of a scale, the same tokens for both branches."""
        if scale_index == 0:
            first = self.model.embed_first(self.text)
            return first if packed.is_whole else first[packed.row_index]
        codes = self.codes.tokens(scale_index)
        embedded = self.model.embed(codes, scale_index)  # [B, L, C]
        if packed.is_whole:
            return embedded.repeat(self.num_rows // self.batch, 1, 1).flatten(0, 1)
        return embedded[packed.on_device(packed.row_prompts)].flatten(0, 1)

    def _guide(
        self,
        x: Tensor,
        scale_index: int,
        packed: PackedScale,
        layers_run: Tensor | None,
        entropies: list[Tensor],
    ) -> ScaleOutput:
        settings = self.settings
        cfg = settings.cfg_scale[scale_index]
        on_logits = cfg != 1 and 0 in settings.cfg_insertion_layers
        num_prompts, length = len(packed.prompts), packed.plan.num_tokens
        rows = len(packed.rows) if on_logits else num_prompts
        head_layout = TokenLayout.dense(rows, length, x.device)
        cond = self.text.cond[:rows] if packed.is_whole else self.text.cond[packed.row_index[:rows]]
        logits = self.model.logits(x[: rows * length], cond, head_layout)
        logits = head_layout.by_row(logits)
        tempered = logits / settings.temperature[scale_index]
        if on_logits:
            tempered = _guide_rows(tempered, packed, cfg)[:num_prompts]
        finite = tempered.isfinite().all(dim=-1).all(dim=-1)
        if num_prompts == self.batch:
            self.finite &= finite
        else:
            self.finite[packed.prompt_index] &= finite
        return ScaleOutput(logits, tempered, packed, layers_run, entropies)

    def add_bits(self, scale_index: int, bits: Tensor, output: ScaleOutput | None = None) -> None:
        """Add a scale's bits to the sum of codes.

        Args:
            scale_index: counted from 0.
            bits: [P, L, D] of the prompts that ran.
            output: of the scale, where not all prompts ran or not all of their tokens count.
        """
        size = self.schedule[scale_index]
        maps = tokens_to_bit_maps(bits, size, self.spatial_patchify)
        if output is None:
            self.codes.add(scale_index, maps)
            return
        packed, counted = output.packed, None
        if packed.plan.code_layers and output.layers_run is not None:
            enough = output.layers_run >= packed.plan.code_layers  # [P, L]
            counted = tokens_to_bit_maps(enough[..., None].expand(bits.shape), size, self.spatial_patchify)
        prompts = None if len(packed.prompts) == self.batch else packed.prompt_index
        self.codes.add(scale_index, maps, prompts, counted)


def _guide_states(x: Tensor, packed: PackedScale, cfg: float) -> Tensor:
    """Guide a hidden state [A * N, C]; both branches go on with the result."""
    states = x.unflatten(0, (len(packed.rows), -1))
    guided = _guide_rows(states, packed, cfg)
    if len(packed.unconditional) == len(packed.prompts):
        return guided.repeat(2, 1, 1).flatten(0, 1)
    return torch.cat((guided, guided[packed.on_device(packed.guided_places)])).flatten(0, 1)


def _guide_rows(rows: Tensor, packed: PackedScale, cfg: float) -> Tensor:
    """Cfg * cond + (1 - cfg) * uncond of [A, L, ...] rows; a conditional row without its twin stays as it is.

    Returns:
        [P, L, ...].
    """
    num_prompts = len(packed.prompts)
    cond, uncond = rows[:num_prompts], rows[num_prompts:]
    if len(packed.unconditional) == num_prompts:
        return cfg * cond + (1 - cfg) * uncond
    if not packed.unconditional:
        return cond
    places = packed.on_device(packed.guided_places)
    return cond.index_copy(0, places, cfg * cond[places] + (1 - cfg) * uncond)


def sample_codes(
    state: BatchState,
    seeds: Tensor,
    policy: PruningPolicy | None = None,
    on_scale: Callable[[int], None] | None = None,
) -> Tensor:
    """Generate a batch.

    Args:
        state: a fresh batch.
        seeds: [B] int64 on the model's device.
        policy: of this batch; None: dense.
        on_scale: called with each scale's index once its work is queued.

    Returns:
        [B, z, H, W] float32: the summed codes, which the VAE decodes.
    """
    if policy is None:
        policy = DensePolicy(BatchContext(state.schedule, state.model.sizes.depth, seeds))
    for scale_index in range(len(state.schedule)):
        plan = policy.plan(scale_index)
        layers_run = _run_planned(state, seeds, policy, scale_index, plan) if plan.prompts else None
        state.history.add(plan, layers_run)
        if on_scale is not None:
            on_scale(scale_index)
    return state.codes.summed_codes


def _run_planned(
    state: BatchState, seeds: Tensor, policy: PruningPolicy, scale_index: int, plan: ScalePlan
) -> Tensor | None:
    """Run one scale, draw its bits and show the policy what it asked for; gives the layers each token ran."""
    settings = state.settings
    output = state.run_scale(scale_index, plan, policy.observe)
    prompts = output.packed.prompts
    drawn_by = seeds if len(prompts) == len(seeds) else seeds[output.packed.prompt_index]
    bits = sample_bits(output.guided, drawn_by, scale_index, top_p=settings.top_p, greedy=settings.greedy)
    state.add_bits(scale_index, bits, output)
    if plan.observe_logits or plan.observe_codes:
        logits = output.guided if plan.observe_logits else None
        codes = state.codes.summed_codes if plan.observe_codes else None
        policy.observe_scale(scale_index, logits, codes, prompts)
    return output.layers_run
