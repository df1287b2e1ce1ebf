"""Pruned batches through the sampler: the same prompt alone and in any batch, and the work that was promised."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate, linear, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from toprovar_batch.kernels.bit_sampling import uniform_noise
from toprovar_batch.kernels.layout import TokenLayout
from toprovar_batch.kernels.ops import PYTORCH
from toprovar_batch.worker.batch_runner import BatchRunner
from toprovar_batch.worker.generator import Generator
from toprovar_batch.worker.guidance import text_rows
from toprovar_batch.worker.image_statistics import ImageStatistics
from toprovar_batch.worker.infinity import transformer
from toprovar_batch.worker.infinity.config import TransformerArchitecture
from toprovar_batch.worker.infinity.flops import transformer_flops
from toprovar_batch.worker.infinity.kv_cache import KVCache
from toprovar_batch.worker.infinity.residual import Residual
from toprovar_batch.worker.infinity.rope import rope_2d
from toprovar_batch.worker.infinity.schedule import scale_schedule
from toprovar_batch.worker.models import random_transformer
from toprovar_batch.worker.pruning.draw import pruning_noise
from toprovar_batch.worker.pruning.packing import PackedScale
from toprovar_batch.worker.pruning.plan import ScalePlan, TokenSet, token_sets
from toprovar_batch.worker.pruning.policies.base import BatchContext, Unobserving
from toprovar_batch.worker.pruning.policies.build import policy_factory
from toprovar_batch.worker.pruning.policies.specs import (
    DenseSpec,
    DetailSpec,
    FastvarSpec,
    FixedExitSpec,
    ReplaySpec,
    SkipvarSpec,
)
from toprovar_batch.worker.pruning.pruning_map import read_pruning_map
from toprovar_batch.worker.request import GenerationRequest
from toprovar_batch.worker.resolved import resolve
from toprovar_batch.worker.sampler import sample_codes
from toprovar_batch.worker.sampling_settings import SamplingSettings
from toprovar_batch.worker.specs import ArchitectureSpec, EngineSpec, ImageSpec, ModelSpec, RuntimeSpec

from .early_toprovar import early_toprovar

CPU = torch.device("cpu")
DEPTH, SCHEDULE, SCHEDULE_1M = 4, scale_schedule(1.0, "0.06M"), scale_schedule(1.0, "1M")
SIZES = TransformerArchitecture(depth=DEPTH, width=64, num_heads=2, text_width=24, bits_per_token=8)
LENGTHS = (3, 9, 1, 5, 7)
TOPROVAR = early_toprovar(depth_threshold=0.5, beta=1e-4, a_min=0.2, a_max=1.2)
POLICIES = {
    "dense": DenseSpec(),
    "fixed_exit": FixedExitSpec(),
    "fastvar": FastvarSpec(),
    "fastvar identity": FastvarSpec(restoration="identity"),
    "skipvar": SkipvarSpec(skip_below=0.3, conditional_below=0.42),
    "detail": DetailSpec(detail_threshold=0.1, first_scale=4),
    "detail skips": DetailSpec(detail_threshold=0.1, first_scale=4, keep_ratio_floor=0.3, conditional_from=7),
    "replay": ReplaySpec(preset="paper-2b"),
    "replay unguided": ReplaySpec(preset="paper-2b", restoration="cached", conditional_from=5),
    "fastvar unguided": FastvarSpec(skipped_scales=1, conditional_from=5),
    "toprovar unguided": TOPROVAR.model_copy(update={"conditional_from": 4}),
    "replay cached": ReplaySpec(plan=((1, 0.5, 0.2, 0), (0.3, 1, 0.1, 0.1)), restoration="cached"),
    "toprovar": TOPROVAR,
    "toprovar some layers": TOPROVAR.model_copy(update={"beta": 1e-3}),
    "toprovar identity": TOPROVAR.model_copy(update={"restoration": "identity"}),
    "toprovar draw": TOPROVAR.model_copy(update={"selection": "draw"}),
    "toprovar scale": TOPROVAR.model_copy(update={"layer_pruning": False, "token_pruning": False}),
    "toprovar scale layer": TOPROVAR.model_copy(update={"token_pruning": False}),
    "toprovar scale token": TOPROVAR.model_copy(update={"layer_pruning": False}),
    "toprovar bits": TOPROVAR.model_copy(update={"saliency": "bit_uncertainty"}),
    "toprovar detail": TOPROVAR.model_copy(update={"saliency": "code_detail"}),
    "toprovar no codes": TOPROVAR.model_copy(update={"code_layer_fraction": 0.5}),
}
SAMPLINGS = {
    "logits": {},
    "hidden": {"cfg_insertion_layers": (-2,)},
    "none": {"cfg_scale": (1.0,) * 7},
}


class _ExactProducts(TorchFunctionMode):
    """Linear layers and attention whose sums no order of adding changes, wherever they are called from.

    A CPU's own round differently with the number of rows. Here the batching must be told from none, by decisions that take
    any difference for one. Factors are whole multiples of 2**-16, so that float64 holds their sums without rounding.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is linear:
            return self._linear(*args, **(kwargs or {}))
        if func is torch.addmm:
            bias, x, weight = args
            return kwargs["out"].copy_(self._linear(x, weight.mT, bias))
        if func is scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        return func(*args, **(kwargs or {}))

    def _linear(self, x, weight, bias=None):
        product = _on_grid(x) @ _on_grid(weight).mT
        return (product if bias is None else product + bias.double()).to(x.dtype)

    def _attention(self, q, k, v, attn_mask=None, scale=None):
        scores = _on_grid(q) @ _on_grid(k).mT * scale
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        weights = _on_grid((scores - scores.amax(-1, keepdim=True)).exp())
        return (weights @ _on_grid(v) / weights.sum(-1, keepdim=True)).to(q.dtype)


def _on_grid(x):
    return (x.double() * 2**16).round() / 2**16


@pytest.fixture
def exact_products():
    with _ExactProducts():
        yield


@pytest.fixture(scope="module")
def model():
    return random_transformer(SIZES, 3, CPU, torch.float32)


def _features(prompt):
    generator = torch.Generator().manual_seed(prompt)
    return torch.randn(LENGTHS[prompt], SIZES.text_width, generator=generator)


def _state(model, prompts, sampling, **options):
    settings = SamplingSettings(**{"cfg_scale": (3.0,) * 7, "temperature": (1.0,) * 7} | sampling)
    rows = text_rows(model, [_features(p) for p in prompts], [None] * len(prompts), guided=settings.guided)
    text = model.encode_text(rows)
    sizes = {"largest_map": SCHEDULE_1M[-1], "codebook_dim": 8, "spatial_patchify": False}
    return BatchRunner(model, text, SCHEDULE, settings, **sizes, backend=PYTORCH, **options)


def _sample(model, spec, prompts, sampling=None, **options):
    """Generate prompts as one batch: its state and policy."""
    with torch.inference_mode():
        state = _state(model, prompts, sampling or {}, **options)
        seeds = torch.tensor([100 + prompt for prompt in prompts])
        policy = policy_factory(spec, len(SCHEDULE), DEPTH)(BatchContext(SCHEDULE, DEPTH, seeds))
        sample_codes(state, seeds, policy)
    return state, policy


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("spec", POLICIES.values(), ids=POLICIES)
@pytest.mark.usefixtures("exact_products")
def test_a_prompt_runs_the_same_tokens_alone_and_in_any_batch(model, spec, sampling):
    together, _ = _sample(model, spec, range(5), sampling, count_layers=True)
    reordered, _ = _sample(model, spec, [4, 0, 3], sampling, count_layers=True)
    maps = together.history.pruning_maps()
    assert torch.equal(reordered.history.pruning_maps(), maps[[4, 0, 3]])
    assert torch.equal(reordered.codes.summed_codes, together.codes.summed_codes[[4, 0, 3]])
    for prompt in range(5):
        alone, _ = _sample(model, spec, [prompt], sampling, count_layers=True)
        assert torch.equal(alone.history.pruning_maps()[0], maps[prompt])
        assert alone.history.work(0) == together.history.work(prompt)
        assert torch.equal(alone.codes.summed_codes[0], together.codes.summed_codes[prompt])


@pytest.mark.parametrize("spec", POLICIES.values(), ids=POLICIES)
def test_nothing_is_ever_nan(model, spec):
    state, policy = _sample(model, spec, range(5))
    assert state.finite.all()
    assert state.codes.summed_codes.isfinite().all()
    for prompt in range(5):
        measured = policy.measured(prompt, ImageStatistics())
        assert not any(np.isnan(measured.layer_representation_score))
        assert all(0 <= ratio <= 1 for ratio in measured.low_entropy_ratio if ratio is not None)


def test_the_batches_of_these_tests_mix_what_they_should(model):
    works = {
        name: [state.history.work(prompt) for prompt in range(5)]
        for name, spec in POLICIES.items()
        for state, _ in [_sample(model, spec, range(5))]
    }
    assert len({work.pruning_start_scale for work in works["toprovar"]}) >= 3
    assert {min(work.branches) for work in works["skipvar"]} == {0, 1, 2}
    assert {min(work.branches) for work in works["detail"]} == {1}
    assert {work.keep_ratio[-1] == 0 for work in works["detail skips"]} == {True, False}
    late = [count for work in works["toprovar some layers"] for count in work.counts[-1]]
    assert {count == 256 for count in late} == {True, False}
    for name in POLICIES.keys() - {"dense"}:
        assert min(work.token_layer_fraction for work in works[name]) < 0.6


@pytest.mark.parametrize(
    "spec",
    [
        early_toprovar(scale_pruning=False, a_min=0.0, a_max=0.0),
        early_toprovar(scale_pruning=False, layer_pruning=False, a_min=0.0, a_max=0.0, selection="draw"),
        early_toprovar(depth_threshold=1.0),
        early_toprovar(scale_pruning=False, token_pruning=False, layer_threshold=1.0, beta=1.0),
        FastvarSpec(keep_ratio=(1.0, 1.0), skipped_scales=0),
        ReplaySpec(plan=((1.0,) * DEPTH,) * 3, restoration="cached"),
        SkipvarSpec(skip_below=0.0, conditional_below=0.0),
        DetailSpec(detail_threshold=0.0, first_scale=1, conditional_from=7),
    ],
)
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_pruning_that_keeps_every_token_is_dense_to_the_bit(model, spec, sampling):
    dense, _ = _sample(model, DenseSpec(), range(3), sampling)
    pruned, _ = _sample(model, spec, range(3), sampling)
    assert torch.equal(pruned.codes.summed_codes, dense.codes.summed_codes)
    assert pruned.history.work(1) == dense.history.work(1)


class _Watching(Unobserving):
    """Runs everything and keeps the entropies of some prompts."""

    def __init__(self, context, prompts):
        super().__init__(context)
        self.prompts, self.seen = prompts, {}

    def plan(self, scale_index):
        return replace(self.context.dense(scale_index), entropy_of=self.prompts)

    def observe(self, scale_index, layer, attn_entropy):
        self.seen[scale_index, layer] = attn_entropy


def test_the_entropy_that_decides_is_that_of_the_conditional_branch(model):
    with torch.inference_mode():
        watching = _Watching(BatchContext(SCHEDULE, DEPTH, torch.arange(3)), (2, 0))
        sample_codes(_state(model, range(3), {}), torch.arange(3), watching)
        state = _state(model, range(3), {})
        first = state.run_scale(0)
        state.add_bits(0, state.draw_bits(0, first, torch.arange(3)).bits)
        every_row = state.run_scale(1, with_entropy=True).entropies
    for layer in range(DEPTH):
        assert torch.equal(watching.seen[1, layer], every_row[layer][[2, 0]])
        assert not torch.isclose(watching.seen[1, layer], every_row[layer][[5, 3]], atol=1e-4).any()


def test_draws_of_tokens_and_of_bits_do_not_share_their_noise():
    seeds = torch.tensor([7])
    assert not (pruning_noise(seeds, 3, 4, 1)[:, 0, 0] == uniform_noise(seeds, 3, 1, 4)[0, 0]).any()


def test_a_skipped_prompt_shows_code_detail_nothing_whoever_shares_its_batch(model):
    spec = early_toprovar(
        saliency="code_detail", scale_pruning=False, layer_pruning=False, keep_ratio_floor=0, a_max=2.3848
    )
    together, _ = _sample(model, spec, range(5))
    for prompt in range(5):
        alone, _ = _sample(model, spec, [prompt])
        assert alone.history.work(0) == together.history.work(prompt)


class _EveryToken(Unobserving):
    """Names every token one by one, in the general path for ragged sets."""

    def plan(self, scale_index):
        dense = self.context.dense(scale_index)
        keys = torch.zeros(1, self.context.num_prompts, dense.num_tokens)
        few = [[dense.num_tokens] * (self.context.num_prompts - 1) + [0]] * self.context.depth
        return replace(dense, layers=token_sets(few, keys, dense.num_tokens, CPU))


def test_the_ragged_path_gives_what_the_rectangular_one_gives(model):
    dense, _ = _sample(model, DenseSpec(), range(3))
    seeds = torch.arange(100, 103)
    with torch.inference_mode():
        state = _state(model, range(3), {})
        sample_codes(state, seeds, _EveryToken(BatchContext(SCHEDULE, DEPTH, seeds)))
    assert torch.equal(state.codes.summed_codes[:2], dense.codes.summed_codes[:2])
    assert not torch.equal(state.codes.summed_codes[2], dense.codes.summed_codes[2])


@pytest.mark.parametrize(
    "spec",
    [SkipvarSpec(skip_below=0, conditional_below=1), ReplaySpec(preset="paper-2b", conditional_from=4)],
)
def test_rows_are_alike_where_guidance_is_left_out(model, spec, monkeypatch):
    layouts, text_rows_seen = {}, {}
    append, cross = KVCache.append, transformer.CrossAttention.forward

    def watch_append(self, layer, qkv, q_scale, rotation, layout):
        layouts.setdefault(len(rotation), set()).add((layout.num_rows, layout.uniform_length))
        return append(self, layer, qkv, q_scale, rotation, layout)

    def watch_cross(self, x, layout, keys, values, lengths, backend):
        text_rows_seen.setdefault(layout.num_rows, set()).add((*keys.shape[:3:2], lengths.lengths))
        return cross(self, x, layout, keys, values, lengths, backend)

    monkeypatch.setattr(KVCache, "append", watch_append)
    monkeypatch.setattr(transformer.CrossAttention, "forward", watch_cross)
    _sample(model, spec, [0, 2, 3])
    assert layouts[16] == {(6, 16)}
    assert {rows for rows, _ in layouts[256]} == {3}
    assert None not in {length for _, length in layouts[256]}
    assert text_rows_seen == {6: {(6, 5, (3, 1, 5) * 2)}, 3: {(3, 5, (3, 1, 5))}}


def test_the_text_of_the_first_rows_ends_with_the_longest_of_them(model):
    """Attention takes no more keys than the longest row has; here the negative prompts are longer."""
    features = [torch.randn(length, SIZES.text_width) for length in (3, 5, 9, 2)]
    with torch.inference_mode():
        whole, alone = model.encode_text(features), model.encode_text(features[:2])
    first = whole.first_rows(2)
    assert first.text_lengths.lengths == (3, 5)
    assert torch.equal(first.text_lengths.mask, alone.text_lengths.mask)
    torch.testing.assert_close(first.cond, alone.cond)
    for ours, theirs in zip(first.blocks, alone.blocks, strict=True):
        assert ours.text_keys.shape == theirs.text_keys.shape == (2, SIZES.num_heads, 5, SIZES.head_dim)
        torch.testing.assert_close(ours.text_values[1], theirs.text_values[1])
        torch.testing.assert_close(ours.adaln, theirs.adaln)


class _RandomSets(Unobserving):
    """Random token sets from scale 2 on, restored or not."""

    def __init__(self, context, *, restore):
        super().__init__(context)
        self.restore = restore
        self.kept = {}

    def plan(self, scale_index):
        dense = self.context.dense(scale_index)
        if scale_index < 2:
            return replace(dense, changes_of=dense.prompts if scale_index == 1 else ())
        generator = torch.Generator().manual_seed(scale_index)
        shape = (self.context.depth, self.context.num_prompts)
        counts = torch.randint(0, dense.num_tokens + 1, shape, generator=generator)
        counts[1] = torch.tensor([0, dense.num_tokens, 3])
        keys = torch.rand(*shape, dense.num_tokens, generator=generator)
        for layer in range(shape[0]):
            for prompt in range(shape[1]):
                order = keys[layer, prompt].argsort()
                self.kept[scale_index, layer, prompt] = order[: counts[layer, prompt]].sort().values
        layers = token_sets(counts.tolist(), keys, dense.num_tokens, CPU)
        return replace(dense, layers=layers, restore=self.restore)


@pytest.mark.parametrize("restore", [False, True])
def test_pruned_hidden_states_agree_with_a_loop_over_rows(model, monkeypatch, restore):
    """Each row by itself: its own cache, its own kept tokens, its layers' changes of scale 1 resized."""
    seeds = torch.arange(3)
    inputs, outputs = {}, {}
    original = BatchRunner._run_layer

    def record(self, layer, states, size, *rest):
        at = SCHEDULE.index(size), layer
        inputs[at] = states.whole().clone()
        entropy = original(self, layer, states, size, *rest)
        outputs[at] = states.whole().clone()
        return entropy

    monkeypatch.setattr(BatchRunner, "_run_layer", record)
    with torch.inference_mode():
        state = _state(model, range(3), {})
        policy = _RandomSets(BatchContext(SCHEDULE, DEPTH, seeds), restore=restore)
        sample_codes(state, seeds, policy)
        for row in range(6):
            prompt = row % 3
            features = _features(prompt) if row < 3 else model.unconditional_features(LENGTHS[prompt])
            text = model.encode_text([features])
            cache = KVCache(SIZES, 1, sum(h * w for h, w in SCHEDULE), 0, CPU, torch.float32, PYTORCH)
            for scale, size in enumerate(SCHEDULE):
                tokens = size[0] * size[1]
                part = slice(row * tokens, (row + 1) * tokens)
                rotation = rope_2d(size, (64, 64), SIZES.head_dim, CPU)
                for layer, block in enumerate(model.blocks):
                    x, expected = inputs[scale, layer][part], inputs[scale, layer][part].clone()
                    kept = policy.kept.get((scale, layer, prompt), torch.arange(tokens))
                    if restore and len(kept) < tokens:
                        change = (outputs[1, layer] - inputs[1, layer])[row * 4 : row * 4 + 4]
                        maps = change.T.reshape(1, -1, 2, 2)
                        expected += interpolate(maps, size, mode="area").flatten(2)[0].T
                    if len(kept):
                        layout = TokenLayout.ragged([kept], CPU)
                        expected[kept], _ = block(
                            x[kept], text.blocks[layer], text.text_lengths, layout, rotation, cache, layer,
                            entropy_rows=(),
                        )  # fmt: skip
                    torch.testing.assert_close(outputs[scale, layer][part], expected, rtol=2e-4, atol=2e-4)
            lengths = [state.cache._lengths[layer][row] for layer in range(DEPTH)]
            counted = [
                sum(len(policy.kept.get((s, layer, prompt), range(h * w))) for s, (h, w) in enumerate(SCHEDULE[:-1]))
                for layer in range(DEPTH)
            ]  # fmt: skip
            assert lengths == counted


class _SharedSets(Unobserving):
    """At two scales half of the layers run some tokens, a few none and one others; all as one object or each its own."""

    def __init__(self, context, *, restore, shared):
        super().__init__(context)
        self.restore, self.shared = restore, shared

    def plan(self, scale_index):
        dense = self.context.dense(scale_index)
        if scale_index < 5:
            return replace(dense, changes_of=dense.prompts if scale_index == 4 else ())
        count = dense.num_tokens
        keys = torch.rand(2, 3, count, generator=torch.Generator().manual_seed(scale_index))
        some, others = token_sets([[count // 3, count, 5], [2, 0, count // 2]], keys, count, CPU)
        (none,) = token_sets([[0, 0, 0]], None, count, CPU)
        layers = [some, some, none, some, others, others, None, some]
        if not self.shared:
            layers = [each and TokenSet(each.counts, each.mask.clone()) for each in layers]
        return replace(dense, layers=tuple(layers), restore=self.restore)


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("restore", [False, True])
def test_layers_that_share_their_tokens_gather_them_once_and_give_the_same(restore, sampling, monkeypatch):
    deep = random_transformer(replace(SIZES, depth=8), 3, CPU, torch.float32)
    seeds, codes, gathered = torch.arange(3), [], []
    start = Residual.__init__
    monkeypatch.setattr(Residual, "__init__", lambda *given: [gathered[-1].append(1), start(*given)][1])
    for shared in (True, False):
        gathered.append([])
        with torch.inference_mode():
            state = _state(deep, range(3), sampling)
            sample_codes(
                state, seeds, _SharedSets(BatchContext(SCHEDULE, 8, seeds), restore=restore, shared=shared)
            )
        codes.append(state.codes.summed_codes)
    assert torch.equal(*codes)
    # Of each scale its whole, and of the last two every run of equal sets. Restored, a layer that runs nothing ends one.
    runs = 4 if restore else 3
    assert [len(each) for each in gathered] == [7 + 2 * runs, 7 + 2 * 6]


class _PrunesOneKeepsAnother(Unobserving):
    """At one scale prompt 0 runs half of its tokens, restored from nothing, and the changes of prompt 1 are kept."""

    SCALE = 2

    def plan(self, scale_index):
        dense = self.context.dense(scale_index)
        if scale_index != self.SCALE:
            return dense
        count = dense.num_tokens
        keys = torch.arange(count).expand(1, 2, count)
        layers = token_sets([[count // 2, count]] * self.context.depth, keys, count, CPU)
        return replace(dense, layers=layers, restore=True, changes_of=(1,))


def test_changes_are_kept_whole_while_another_prompt_is_restored_from_nothing(model):
    seeds = torch.arange(2)
    kept = []
    for policy in (_PrunesOneKeepsAnother, _KeepsChangesOfBoth):
        with torch.inference_mode():
            state = _state(model, range(2), {})
            sample_codes(state, seeds, policy(BatchContext(SCHEDULE, DEPTH, seeds)))
        rows, changes = state._changes._kept[0][SCHEDULE[_PrunesOneKeepsAnother.SCALE]]
        kept.append(changes[[rows[1], rows[3]]])
    torch.testing.assert_close(kept[0], kept[1], rtol=1e-4, atol=1e-5)


class _KeepsChangesOfBoth(Unobserving):
    """Runs everything and keeps the changes of one scale."""

    def plan(self, scale_index):
        dense = self.context.dense(scale_index)
        return replace(dense, changes_of=(0, 1) if scale_index == _PrunesOneKeepsAnother.SCALE else ())


def test_the_change_of_a_block_stands_for_the_outputs_of_its_sublayers(model):
    """FastVAR restores self-attention, cross-attention and feed-forward each; resized, their sum is the same."""
    block, size = model.blocks[0], (4, 4)
    seen = {}
    modules = (block.sa.proj, block.ca, block.ffn)
    handles = [
        module.register_forward_hook(lambda m, _inputs, output: seen.update({m: output}))
        for module in modules
    ]
    with torch.inference_mode():
        text = model.encode_text([_features(1)])
        cache = KVCache(SIZES, 1, 16, 0, CPU, torch.float32, PYTORCH)
        x = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
        rotation = rope_2d(size, (64, 64), SIZES.head_dim, CPU)
        layout = TokenLayout.dense(1, 16, CPU)
        after, _ = block(x, text.blocks[0], text.text_lengths, layout, rotation, cache, 0, entropy_rows=())
    for handle in handles:
        handle.remove()

    def resized(update):
        return interpolate(update.T.reshape(1, -1, *size), (6, 6), mode="area").flatten(2)[0].T

    gamma1, gamma2 = text.blocks[0].adaln[:2, 0]
    each = gamma1 * resized(seen[modules[0]]) + resized(seen[modules[1]]) + gamma2 * resized(seen[modules[2]])
    torch.testing.assert_close(resized(after - x), each, rtol=1e-4, atol=1e-5)


def test_a_skipped_prompt_adds_nothing_and_the_others_do(model):
    class SkipsSecond(Unobserving):
        def plan(self, scale_index):
            return replace(self.context.dense(scale_index), skipped=(False, scale_index > 3, False))

    with torch.inference_mode():
        seeds = torch.arange(100, 103)
        state = _state(model, range(3), {})
        before = []
        sample_codes(
            state,
            seeds,
            SkipsSecond(BatchContext(SCHEDULE, DEPTH, seeds)),
            lambda _scale: before.append(state.codes.summed_codes.clone()),
        )
    dense, _ = _sample(model, DenseSpec(), range(3))
    assert torch.equal(state.codes.summed_codes[[0, 2]], dense.codes.summed_codes[[0, 2]])
    assert torch.equal(before[3][1], state.codes.summed_codes[1])


def test_the_conditional_branch_alone_is_the_image_without_guidance(model):
    class Alone(Unobserving):
        def plan(self, scale_index):
            return replace(self.context.dense(scale_index), conditional_only=(True, False, True))

    unguided, _ = _sample(model, DenseSpec(), range(3), {"cfg_scale": (1.0,) * 7})
    guided, _ = _sample(model, DenseSpec(), range(3))
    for sampling in ({}, {"cfg_insertion_layers": (-2,)}):
        with torch.inference_mode():
            seeds = torch.arange(100, 103)
            state = _state(model, range(3), sampling)
            sample_codes(state, seeds, Alone(BatchContext(SCHEDULE, DEPTH, seeds)))
        assert torch.equal(state.codes.summed_codes[[0, 2]], unguided.codes.summed_codes[[0, 2]])
    inserted, _ = _sample(model, DenseSpec(), range(3), {"cfg_insertion_layers": (-2,)})
    assert torch.equal(state.codes.summed_codes[1], inserted.codes.summed_codes[1])
    assert not torch.equal(guided.codes.summed_codes[0], unguided.codes.summed_codes[0])
    assert state.history.work(0).keep_ratio == [0.5] * 7
    assert state.history.work(1).keep_ratio == [1.0] * 7


def test_tokens_below_the_layer_fraction_add_no_codes(model):
    spec = ReplaySpec(plan=((0.5, 0.0, 0.0, 0.0),))

    class Strict(Unobserving):
        def __init__(self, inner):
            super().__init__(inner.context)
            self.inner = inner

        def plan(self, scale_index):
            return replace(self.inner.plan(scale_index), code_layers=1)

    with torch.inference_mode():
        seeds = torch.arange(100, 102)
        states = []
        before = []
        for strict in (False, True):
            policy = policy_factory(spec, 7, DEPTH)(BatchContext(SCHEDULE, DEPTH, seeds))
            state = _state(model, range(2), {}, count_layers=True)
            remember = lambda scale, state=state: (  # noqa: E731
                before.append(state.codes.summed_codes.clone()) if scale == 5 else None
            )
            sample_codes(state, seeds, Strict(policy) if strict else policy, remember)
            states.append(state)
    loose, strict = (state.codes.summed_codes for state in states)
    ran = (states[0].history.layers_run[-1] > 0).view(2, 1, 16, 16).expand(2, 8, 16, 16)
    assert ran.float().mean() == 0.5
    assert torch.equal(strict[ran], loose[ran])
    assert torch.equal(strict[~ran], before[1][~ran])
    assert not torch.equal(loose[~ran], before[0][~ran])


def test_operations_are_counted_by_tokens_and_keys():
    counts = [[1, 1], [4, 0], [2, 9]]
    sizes = TransformerArchitecture(depth=2, width=64, num_heads=2, text_width=24, bits_per_token=8)
    per_token = 2 * 6 * 64**2 + 4 * 64 * 256
    head = 2 * 64 * 16
    cond = (1 + 4 + 2 + 1 + 9) * per_token + 4 * 64 * (1 + 4 * 5 + 2 * 7 + 1 + 9 * 10) + 14 * head
    uncond = (1 + 2 + 1 + 9) * per_token + 4 * 64 * (1 + 2 * 3 + 1 + 9 * 10) + 10 * head
    assert transformer_flops(sizes, counts, (2, 1, 2), (2, 4, 18)) == cond + uncond
    assert transformer_flops(sizes, counts, (1, 1, 1), (1, 4, 9)) == cond
    one_head = transformer_flops(sizes, counts, (2, 1, 2), (1, 4, 9))
    assert one_head == cond + uncond - 10 * head
    skipped = transformer_flops(sizes, [[1, 1], [4, 0], [0, 0]], (1, 1, 0), (1, 4, 0))
    assert skipped == 6 * per_token + 4 * 64 * (1 + 20 + 1) + 5 * head


SMALL = ArchitectureSpec(depth=4, width=64, num_heads=2, vae_channel_multipliers=(1, 1, 1, 1, 1))


def _generator(policy, resolution="0.06M", h_div_w=1.0):
    spec = EngineSpec(
        model=ModelSpec(random_weights=True, architecture=SMALL),
        image=ImageSpec(resolution=resolution, h_div_w=h_div_w),
        policy=policy,
    )
    generator = Generator(resolve(spec), RuntimeSpec(device="cpu"))
    generator.setup()
    return generator


@pytest.mark.slow
def test_watching_prompts_and_keeping_their_tokens_changes_no_picture_on_any_device():
    # On a GPU one kernel watches and another attends up to 1,023 queries, from 1,024 on one may do both.
    sizes = {"depth": 2, "width": 256, "num_heads": 2, "vae_channel_multipliers": (1,) * 5}
    model = ModelSpec(random_weights=True, architecture=ArchitectureSpec(**sizes))
    spec = EngineSpec(model=model, image=ImageSpec(resolution="0.25M"))
    generator = Generator(resolve(spec), RuntimeSpec(device="auto"))
    generator.setup()
    requests = [GenerationRequest(f"s{seed}", "x" * seed, None, seed) for seed in (1, 20)]

    def pixels(policy):
        made = generator.with_policy(policy).generate(requests)
        assert made.fractions == [1.0, 1.0]
        return made.pixels

    dense = pixels(DenseSpec())
    assert np.array_equal(pixels(early_toprovar(depth_threshold=1.0)), dense)
    assert np.array_equal(pixels(early_toprovar(scale_pruning=False, a_min=0.0, a_max=0.0)), dense)


def test_statistics_tell_what_was_pruned():
    spec = TOPROVAR.model_copy(update={"pruning_map": True, "token_pruning": False, "layer_pruning": False})
    requests = [
        GenerationRequest(f"s{index}", prompt, None, index, 1.5)
        for index, prompt in enumerate(["a red cube", "a very long table in the evening sun", "x"])
    ]
    dense = _generator(DenseSpec()).generate(requests)
    pruned = _generator(spec).generate(requests)
    some_pruned = 0
    for result, whole in zip(pruned.statistics, dense.statistics, strict=True):
        start = result.pruning_start_scale
        assert start > 2
        assert result.keep_ratio == (1.0,) * start + (0.0,) * (7 - start)
        assert [ratio is not None for ratio in result.low_entropy_ratio[2:start]] == [True] * (
            min(start, 6) - 2
        )
        if start < 7:
            some_pruned += 1
            assert result.low_entropy_ratio[start - 1] >= 0.5
            assert result.flops < whole.flops
            assert result.token_layer_fraction < 1
        layers = read_pruning_map(result.pruning_map, 1.5, 7)
        assert [scale.shape for scale in layers] == list(scale_schedule(1.5, "0.06M"))
        assert all((scale == (4 if index < start else 0)).all() for index, scale in enumerate(layers))
        assert whole.pruning_map is None
        assert whole.low_entropy_ratio == (None,) * 7
    assert some_pruned


def test_layer_scores_reach_the_statistics():
    spec = TOPROVAR.model_copy(update={"depth_threshold": 0.0})
    (result,) = _generator(spec).generate([GenerationRequest("s", "a red cube", None, 1)]).statistics
    assert len(result.layer_representation_score) == 4
    assert all(0 <= score <= 1 for score in result.layer_representation_score)
    assert result.pruning_start_scale == 3


def test_a_pruning_map_of_another_size_is_refused():
    with pytest.raises(ValueError, match="has 521 tokens, this one has 3"):
        read_pruning_map(b"abc", 1.0, 7)
    with pytest.raises(ValueError, match="no schedule has 8 scales"):
        read_pruning_map(b"abc", 1.0, 8)


def test_the_dense_plan_takes_the_rectangular_path():
    packed = PackedScale(ScalePlan.dense(16, DEPTH, 3), num_rows=6, device=CPU)
    tokens = packed.layer_tokens(0, torch.zeros(96, 1))
    assert tokens.positions is None
    assert tokens.layout.token_indices is None
    assert tokens.layout.uniform_length == 16
