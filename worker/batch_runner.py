"""The transformer over one batch: a scale's plan in, its logits and their bits out.

The steps stand alone, so that a verification can feed recorded bits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from toprovar_batch.kernels.ops import Backend, BitDraw, DrawnBits, draw_bits

from .graphed_states import GraphedStates
from .guidance import guide_states
from .head_tokens import HeadTokens, head_tokens
from .infinity.bsq import ResidualSum, code_size, tokens_to_bit_maps
from .infinity.config import MAX_TEXT_TOKENS
from .infinity.kv_cache import KVCache
from .infinity.schedule import ScaleSchedule
from .infinity.text_context import TextContext
from .infinity.transformer import Infinity
from .pruning.history import BatchHistory, count_layers
from .pruning.packing import LayerTokens, PackedScale
from .pruning.plan import ScalePlan
from .pruning.restoration import LayerChanges
from .sampling_settings import SamplingSettings
from .scale_states import ScaleStates
from .static_batch import BatchShape, StaticBatch
from .workspace import Workspace


@dataclass
class ScaleOutput:
    """What the transformer gives at one scale, for the P prompts that run in it.

    Attributes:
        logits: [T, 2D] float32 before temperature and guidance, of the tokens that the head took.
        tokens: which these are; of the unconditional branches only where their logits are needed.
        packed: which rows and prompts run.
        layers_run: [P, L] int64, how many layers each token ran; None where nobody asks.
        entropies: per layer [R, L] float32 nats; empty unless asked for.
    """

    logits: Tensor
    tokens: HeadTokens
    packed: PackedScale
    layers_run: Tensor | None = None
    entropies: list[Tensor] = field(default_factory=list)

    @property
    def logit_maps(self) -> Tensor:
        """[A, L, 2D]: the logits by row, where the head took whole maps."""
        return self.tokens.layout.by_row(self.logits)


@dataclass(frozen=True)
class _Ran:
    """A scale whose layers have run: its rows, the tokens of each layer, and what became of the hidden state."""

    packed: PackedScale
    tokens: list[LayerTokens | None]
    states: ScaleStates | GraphedStates


class BatchRunner:
    """Runs the transformer on a batch, scale by scale, and keeps its caches and the sum of its codes.

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
        largest_map: tuple[int, int],
        codebook_dim: int,
        spatial_patchify: bool,
        backend: Backend,
        count_layers: bool = False,
        packs: bool = True,
        workspace: Workspace | None = None,
    ) -> None:
        """Reserve the caches of a batch.

        Args:
            model: the transformer.
            text: of all R rows, conditional ones first.
            schedule: token map sizes, coarse to fine.
            settings: resolved for the schedule.
            largest_map: (height, width) over which positions are spread, see `schedule.largest_map`.
            codebook_dim: code bits z.
            spatial_patchify: whether a token holds 2 x 2 codes.
            backend: of the kernels.
            count_layers: count for the history how many layers each token runs.
            packs: whether some tokens of a scale may run while others do not.
            workspace: memory that the batch takes over from the one before, with graphs of the work; None: its own.
        """
        self.model, self.schedule, self.settings = model, schedule, settings
        self.spatial_patchify = spatial_patchify
        self.num_rows = text.cond.shape[0]
        self.batch = self.num_rows // 2 if settings.guided else self.num_rows
        self.history = BatchHistory(schedule, guided=settings.guided)
        self._count_layers = count_layers
        self._changes = LayerChanges(model.sizes.depth, self.batch, model.dtype)
        self._largest_map = largest_map
        self._static: StaticBatch | None = None
        self._graphs = None if workspace is None else workspace.graphs
        size = code_size(schedule[-1], spatial_patchify)
        if workspace is None:
            *earlier, last = (h * w for h, w in schedule)
            self.cache = KVCache(
                model.sizes, self.num_rows, sum(earlier), last, model.device, model.dtype, backend
            )
            self.text, storage = text, None
            self.finite = torch.ones(self.batch, dtype=torch.bool, device=model.device)
        else:
            # Room for the longest text: a batch with longer texts than the one before needs no other graphs.
            shape = BatchShape(
                schedule, self.num_rows, MAX_TEXT_TOKENS, codebook_dim, size, self.batch, packs
            )
            self._static = workspace.batch(shape)
            self._static.start(text)
            self.cache, self.text = self._static.cache, self._static.text
            self.finite, storage = self._static.finite, self._static.codes
        self.codes = ResidualSum(schedule, self.batch, codebook_dim, spatial_patchify, model.device, storage)
        self._texts = {self.num_rows: self.text}  # views of its first rows, by their number

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
        size = self.schedule[scale_index]
        if plan is None:
            plan = ScalePlan.dense(size[0] * size[1], self.model.sizes.depth, self.batch)
        # A prompt's conditional row has its number.
        entropy_rows = tuple(range(self.num_rows)) if with_entropy else plan.entropy_of
        entropies: list[Tensor] = []

        def keep(_scale_index: int, _layer: int, maps: Tensor) -> None:
            entropies.append(maps)

        ran = self._run_layers(scale_index, plan, keep if with_entropy else observe, entropy_rows)
        return self._output(scale_index, ran, entropies)

    def _run_layers(
        self,
        scale_index: int,
        plan: ScalePlan,
        observe: Callable[[int, int, Tensor], None] | None,
        entropy_rows: Sequence[int],
    ) -> _Ran:
        model, size = self.model, self.schedule[scale_index]
        packed = PackedScale(plan, self.num_rows, model.device)
        if scale_index == len(self.schedule) - 1:
            self.cache.enter_last_scale()
        states = self._start_states(scale_index, packed)
        cfg = self.settings.cfg_scale[scale_index]
        run = []
        for layer in range(model.sizes.depth):
            chosen_by = states.whole() if packed.chooses_by_state(layer) else None
            tokens = packed.layer_tokens(layer, chosen_by)
            run.append(tokens)
            entropy = self._run_layer(layer, states, size, packed, tokens, entropy_rows)
            if entropy is not None and observe is not None:
                observe(scale_index, layer, entropy.unflatten(0, (len(entropy_rows), -1)))
            if cfg != 1 and layer - model.sizes.depth in self.settings.cfg_insertion_layers:
                states.replace(guide_states(states.whole(), packed, cfg))
        return _Ran(packed, run, states)

    def _start_states(self, scale_index: int, packed: PackedScale) -> ScaleStates | GraphedStates:
        """The hidden state at the input of the first layer."""
        if self._static is None or self._graphs is None:
            size, device = self.schedule[scale_index], self.model.device
            rotation = self.model.rotations.of(size, self._largest_map, device)
            x, layout = self._embed(scale_index, packed), packed.whole.layout
            return ScaleStates(x, layout, self.model, self._text_of(packed), rotation, self.cache)
        states = GraphedStates(scale_index, packed, self._static, self.model, self._largest_map, self._graphs)
        states.start(lambda: self._embed(scale_index, packed))
        return states

    def _output(self, scale_index: int, ran: _Ran, entropies: list[Tensor]) -> ScaleOutput:
        """The logits of what ran."""
        packed = ran.packed
        layers_run = count_layers(packed, ran.tokens) if self._counts_layers(packed.plan) else None
        taken = head_tokens(packed, ran.tokens, both_branches=self.settings.guides_logits[scale_index])
        modulation = taken.of_rows(self.text.head_modulation)
        x = taken.of_states(ran.states.whole())
        logits = self.model.logits(x, modulation, taken.layout, self.cache.backend)
        return ScaleOutput(logits, taken, packed, layers_run, entropies)

    def _counts_layers(self, plan: ScalePlan) -> bool:
        return self._count_layers or plan.code_layers > 0

    def _run_layer(
        self,
        layer: int,
        states: ScaleStates | GraphedStates,
        size: tuple[int, int],
        packed: PackedScale,
        tokens: LayerTokens | None,
        entropy_rows: Sequence[int],
    ) -> Tensor | None:
        """Run a block on some tokens of the scale; the others pass, or are restored.

        Returns:
            The entropy of the tokens of `entropy_rows`, or None.
        """
        plan, entropy = packed.plan, None
        some_pass = tokens is None or tokens.positions is not None
        before = states.snapshot() if plan.changes_of else None
        if tokens is not None:
            entropy = states.advance(layer, tokens, entropy_rows)
        if plan.restore and some_pass:
            self._changes.restore(layer, size, packed, tokens, states.beside(tokens))
        if before is not None:
            self._changes.keep(layer, size, packed, before, states.whole())
        return entropy

    def sample_scale(
        self,
        scale_index: int,
        plan: ScalePlan,
        seeds: Tensor,
        observe: Callable[[int, int, Tensor], None] | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Run a scale, draw its bits and add their codes.

        Args:
            scale_index: counted from 0.
            plan: what runs, of at least one prompt.
            seeds: [B] int64 on the model's device, the same at every scale.
            observe: takes (scale, layer, entropy [n, N]) of the prompts in the plan's `entropy_of`.

        Returns:
            The guided logits where the plan wants them, and [P, L] int64, how many layers each token ran, where counted.
        """
        if self._static is not None:
            seeds = self._static.seeds.copy_(seeds)
        ran = self._run_layers(scale_index, plan, observe, plan.entropy_of)

        def finish() -> tuple[Tensor | None, Tensor | None]:
            output = self._output(scale_index, ran, [])
            drawn = self.draw_bits(scale_index, output, seeds, with_guided=plan.observe_logits)
            self.add_bits(scale_index, drawn.bits, output)
            return drawn.guided, output.layers_run

        packed = ran.packed
        everything = len(packed.prompts) == self.batch and all(each is packed.whole for each in ran.tokens)
        # Where some prompts alone are guided, which ones is a table that is copied from the host.
        alike = len(packed.unconditional) in (0, len(packed.prompts))
        if not everything or not alike or self._counts_layers(plan) or plan.observe_logits:
            return finish()
        return ran.states.finish(finish, self.settings)

    def _text_of(self, packed: PackedScale) -> TextContext:
        """The text of the rows of the scale's layouts."""
        rows = packed.num_layout_rows
        if rows not in self._texts:
            self._texts[rows] = self.text.first_rows(rows)
        return self._texts[rows]

    def _embed(self, scale_index: int, packed: PackedScale) -> Tensor:
        """[A * N, C] float32 input of a scale, the same tokens for both branches."""
        if scale_index == 0:
            return packed.of_rows(self.model.embed_first(self.text))
        codes = self.codes.tokens(scale_index)
        embedded = self.model.embed(codes, scale_index)  # [B, L, C]
        if packed.are_first_rows:
            both = embedded if len(packed.rows) <= self.batch else embedded.repeat(2, 1, 1)
            return both[: len(packed.rows)].flatten(0, 1)
        return embedded[packed.on_device(packed.row_prompts)].flatten(0, 1)

    def draw_bits(
        self, scale_index: int, output: ScaleOutput, seeds: Tensor, *, with_guided: bool = False
    ) -> DrawnBits:
        """Guide a scale's logits and draw their bits.

        Args:
            scale_index: counted from 0.
            output: of the scale.
            seeds: [B] int64 on the model's device.
            with_guided: also give the guided logits.

        Returns:
            Of the P prompts that ran; bits of tokens that the head did not take are False.
        """
        settings, packed = self.settings, output.packed
        everyone = len(packed.prompts) == self.batch
        draw = BitDraw(
            scale_index,
            settings.cfg_scale[scale_index],
            settings.temperature[scale_index],
            settings.top_p,
            settings.greedy,
        )
        drawn = draw_bits(
            output.logits,
            output.tokens.by_prompt,
            seeds if everyone else seeds[packed.prompt_index],
            packed.plan.num_tokens,
            draw,
            with_guided=with_guided,
            backend=self.cache.backend,
        )
        if everyone:
            self.finite &= drawn.finite
        else:
            self.finite[packed.prompt_index] &= drawn.finite
        return drawn

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
