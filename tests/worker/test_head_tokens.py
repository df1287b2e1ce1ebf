"""The head and the draws take the tokens whose codes count, and no others."""

from dataclasses import replace

import pytest
import torch

from toprovar_batch.kernels.ops import PYTORCH
from toprovar_batch.worker.batch_runner import BatchRunner
from toprovar_batch.worker.generator import Generator
from toprovar_batch.worker.guidance import text_rows
from toprovar_batch.worker.head_tokens import head_tokens
from toprovar_batch.worker.infinity.config import TransformerArchitecture
from toprovar_batch.worker.infinity.schedule import scale_schedule
from toprovar_batch.worker.infinity.transformer import Infinity
from toprovar_batch.worker.models import random_transformer
from toprovar_batch.worker.pruning.packing import PackedScale
from toprovar_batch.worker.pruning.plan import ScalePlan, token_sets
from toprovar_batch.worker.pruning.policies.base import BatchContext, Unobserving
from toprovar_batch.worker.request import GenerationRequest
from toprovar_batch.worker.resolved import resolve
from toprovar_batch.worker.sampler import sample_codes
from toprovar_batch.worker.sampling_settings import SamplingSettings
from toprovar_batch.worker.specs import (
    ArchitectureSpec,
    EngineSpec,
    ImageSpec,
    ModelSpec,
    RuntimeSpec,
    SamplingSpec,
)

CPU = torch.device("cpu")
DEPTH, SCHEDULE = 3, scale_schedule(1.0, "0.06M")
SIZES = TransformerArchitecture(depth=DEPTH, width=64, num_heads=2, text_width=24, bits_per_token=8)
KEYS = torch.tensor([[[3.0, 1, 2, 0], [0, 1, 2, 3], [3, 2, 1, 0]]])  # [1, B, N]


def _packed(counts, **changes):
    layers = token_sets(counts, KEYS, 4, CPU)
    plan = replace(ScalePlan.dense(4, len(counts), 3), layers=layers, **changes)
    packed = PackedScale(plan, 6, CPU)
    return packed, [packed.layer_tokens(layer, torch.zeros(0)) for layer in range(len(counts))]


def test_tokens_of_both_branches_are_those_of_the_layer_of_fewest():
    packed, ran = _packed(
        [[4, 4, 4], [2, 1, 4]],
        code_layers=2,
        skipped=(False, True, False),
        conditional_only=(False, False, True),
    )
    both = head_tokens(packed, ran, both_branches=True)
    # The hidden state holds prompts 0 and 2, then the unconditional branch of prompt 0.
    assert both.positions.tolist() == [1, 3, 4, 5, 6, 7, 9, 11]
    assert both.layout.row_ids.tolist() == [0, 0, 2, 2, 2, 2, 3, 3]
    assert both.by_prompt.row_lengths == (2, 4, 2, 0)
    assert both.by_prompt.token_indices.tolist() == [1, 3, 0, 1, 2, 3, 1, 3]
    one = head_tokens(packed, ran, both_branches=False)
    assert one.positions.tolist() == [1, 3, 4, 5, 6, 7]
    assert one.by_prompt.row_lengths == (2, 4)
    states, rows = torch.arange(12.0)[:, None], torch.arange(6.0)[:, None]
    assert one.of_states(states).flatten().tolist() == [1, 3, 4, 5, 6, 7]
    assert torch.equal(one.of_rows(rows)[one.layout.row_ids], torch.tensor([[0.0], [0], [2], [2], [2], [2]]))


def test_whole_maps_are_views_of_the_first_rows():
    packed, ran = _packed([[4, 4, 4]], conditional_only=(False, True, False))
    both = head_tokens(packed, ran, both_branches=True)
    assert both.positions is None
    assert both.layout.row_lengths == (4,) * 5
    assert both.of_rows(torch.arange(6)).tolist() == [0, 1, 2, 3, 5]
    assert both.by_prompt.row_lengths == (4, 4, 4, 4, 0, 4)
    one = head_tokens(packed, ran, both_branches=False)
    assert one.by_prompt.row_lengths == one.layout.row_lengths == (4,) * 3


def test_where_a_layer_runs_nothing_the_head_takes_nothing():
    packed, ran = _packed([[0, 0, 0], [2, 1, 4]], code_layers=2)
    none = head_tokens(packed, ran, both_branches=True)
    assert none.of_states(torch.zeros(24, 5)).shape == (0, 5)
    assert none.by_prompt.num_tokens == none.layout.num_tokens == 0


class _Pruned(Unobserving):
    """From scale 3 on few tokens run in each layer, other ones for each prompt, and in the last scale a layer is empty."""

    code_layers = DEPTH

    def plan(self, scale_index):
        dense = self.context.dense(scale_index)
        if scale_index < 3:
            return dense
        n, prompts = dense.num_tokens, self.context.num_prompts
        keys = torch.rand(1, prompts, n, generator=torch.Generator().manual_seed(scale_index))
        counts = [[n - layer - prompt for prompt in range(prompts)] for layer in range(DEPTH)]
        if scale_index == 6:
            counts[1] = [0] * prompts
        layers = token_sets(counts, keys, n, CPU)
        alone = tuple(prompt == 1 for prompt in range(prompts))
        return replace(dense, layers=layers, code_layers=self.code_layers, conditional_only=alone)


@pytest.fixture(scope="module")
def model():
    return random_transformer(SIZES, 3, CPU, torch.float32)


def _codes(model, monkeypatch, **sampling):
    """The codes of three prompts, and how many tokens the head took in each scale."""
    taken = []
    real = Infinity.logits

    def logits(self, x, *rest):
        taken.append(len(x))
        return real(self, x, *rest)

    with monkeypatch.context() as patch, torch.inference_mode():
        patch.setattr(Infinity, "logits", logits)
        settings = SamplingSettings(**{"cfg_scale": (3.0,) * 7, "temperature": (0.7,) * 7} | sampling)
        features = [
            torch.randn(4, 24, generator=torch.Generator().manual_seed(prompt)) for prompt in range(3)
        ]
        text = model.encode_text(text_rows(model, features, [None] * 3, guided=settings.guided))
        sizes = {"largest_map": (64, 64), "codebook_dim": 8, "spatial_patchify": False}
        runner = BatchRunner(model, text, SCHEDULE, settings, **sizes, backend=PYTORCH)
        seeds = torch.arange(50, 53)
        codes = sample_codes(runner, seeds, _Pruned(BatchContext(SCHEDULE, DEPTH, seeds)))
    assert runner.finite.all()
    head = [runner.history.work(prompt).head_tokens(settings.guides_logits) for prompt in range(3)]
    assert [sum(scale) for scale in zip(*head, strict=True)] == taken
    return codes, taken


@pytest.mark.parametrize(
    "sampling", [{}, {"cfg_insertion_layers": (-2,)}, {"cfg_scale": (1.0,) * 7}], ids=str
)
def test_leaving_tokens_out_of_the_head_changes_no_code(model, monkeypatch, sampling):
    some, taken = _codes(model, monkeypatch, **sampling)
    monkeypatch.setattr(ScalePlan, "head_layer", None)
    every, all_taken = _codes(model, monkeypatch, **sampling)
    assert torch.equal(some, every)
    assert taken[:3] == all_taken[:3]
    assert all(few < many for few, many in zip(taken[3:], all_taken[3:], strict=True))
    assert taken[6] == 0


def test_flops_count_the_head_once_where_a_hidden_state_is_guided():
    small = ArchitectureSpec(depth=2, width=64, num_heads=2, vae_channel_multipliers=(1, 1, 1, 1, 1))

    def flops(**sampling):
        spec = EngineSpec(
            model=ModelSpec(random_weights=True, architecture=small),
            image=ImageSpec(resolution="0.06M"),
            sampling=SamplingSpec(**sampling),
        )
        generator = Generator(resolve(spec), RuntimeSpec(device="cpu"))
        generator.setup()
        return generator.generate([GenerationRequest("s", "a red cube", None, 1)]).statistics[0].flops

    tokens = sum(height * width for height, width in SCHEDULE)
    bits = 32
    one_head = tokens * 2 * 64 * 2 * bits
    assert flops() - flops(cfg_insertion_layer=-1) == one_head
