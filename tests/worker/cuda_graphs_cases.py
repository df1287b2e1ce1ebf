"""Batches over tensors that stay in place, beside batches with tensors of their own.

On a GPU the work is captured; elsewhere Triton's interpreter runs it, and the first body of every key is run again, which
fails as a graph would where a body depends on more than its key. Not collected by name, see `residual_cases`.
"""

import sys
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime import interpreter

from toprovar_batch.kernels import host_values
from toprovar_batch.kernels.ops import Backend, fastest_attention
from toprovar_batch.worker.batch_runner import BatchRunner
from toprovar_batch.worker.guidance import text_rows
from toprovar_batch.worker.infinity.config import TransformerArchitecture
from toprovar_batch.worker.infinity.schedule import scale_schedule
from toprovar_batch.worker.models import random_transformer
from toprovar_batch.worker.pruning.policies.base import BatchContext
from toprovar_batch.worker.pruning.policies.build import policy_factory
from toprovar_batch.worker.pruning.policies.dense import DensePolicy
from toprovar_batch.worker.pruning.policies.specs import (
    DenseSpec,
    DetailSpec,
    FastvarSpec,
    ReplaySpec,
    SkipvarSpec,
    ToprovarSpec,
)
from toprovar_batch.worker.sampler import sample_codes
from toprovar_batch.worker.sampling_settings import SamplingSettings
from toprovar_batch.worker.static_batch import BatchShape
from toprovar_batch.worker.workspace import Workspace

IS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if IS_GPU else "cpu")
TRITON = Backend("triton", "for this test")
SCHEDULE = scale_schedule(1.0, "0.25M") if IS_GPU else scale_schedule(1.0, "0.06M")[:4]
DEPTH = 3
WIDTH = 256 if IS_GPU else 96
SIZES = TransformerArchitecture(DEPTH, WIDTH, num_heads=2, text_width=24, bits_per_token=8)
LATE = len(SCHEDULE) - 2
TOPROVAR = ToprovarSpec(representative_scale=LATE - 1, depth_threshold=1, a_max=0.5)
PLAN = ((1, 0.5, 0.2), (0.3, 1, 0.3))
POLICIES = {
    "dense": DenseSpec(),
    "replay": ReplaySpec(plan=PLAN),
    "replay cached, unguided": ReplaySpec(plan=PLAN, restoration="cached", conditional_from=LATE),
    "detail": DetailSpec(detail_threshold=0.3, first_scale=LATE, conditional_from=LATE),
    "detail skips": DetailSpec(detail_threshold=0.4, first_scale=LATE, keep_ratio_floor=0.45),
    "toprovar": TOPROVAR,
    "toprovar late": TOPROVAR.model_copy(update={"depth_threshold": 0.5}),
    "fastvar": FastvarSpec(skipped_scales=0, first_layer=1, last_layer=2),
    "skipvar": SkipvarSpec(skip_below=0.0, conditional_below=0.9),
}
ALL_POLICIES = POLICIES
if not IS_GPU:  # the interpreter takes half a minute for a policy
    POLICIES = {name: POLICIES[name] for name in ("dense", "detail skips", "toprovar late", "fastvar")}
BATCHES = ((0, 1, 2), (3, 4, 5), (1, 3), (2, 0, 4), (4, 1), (5, 2, 1), (0, 1), (0, 1, 2))[
    : 8 if IS_GPU else 4
]
LENGTHS = (3, 9, 5, 70, 2, 4)


class FirstBodies:
    """Runs the first body of each key whenever the key comes, and gives it the same tensors back.

    A body that copies from the host fails: a graph would go on reading the host's memory after it was freed.
    """

    def __init__(self):
        self._bodies = {}

    def run(self, key, body):
        with pytest.MonkeyPatch.context() as patched:
            for module in set(sys.modules.values()) - {
                host_values
            }:  # what a body imports takes them from there
                for name in ("to_device", "send"):
                    if getattr(module, name, None) is getattr(host_values, name):
                        patched.setattr(module, name, self._copied)
            return self._bodies.setdefault(key, body)()

    @staticmethod
    def _copied(values, device):
        raise AssertionError(f"{values} were copied from the host within work that is replayed")

    def reserve(self, size):
        pass

    def clear(self):
        self._bodies.clear()

    def usage(self):
        return {}


class GuidesTheFirst(DensePolicy):
    """Runs all tokens, and guides the first prompt alone."""

    def plan(self, scale_index):
        others = (True,) * (self.context.num_prompts - 1)
        return replace(self.context.dense(scale_index), conditional_only=(False, *others))


def _codes(model, spec, prompts, settings, workspace, make_policy=None):
    generator = torch.Generator().manual_seed(7)
    features = [torch.randn(length, SIZES.text_width, generator=generator) for length in LENGTHS]
    chosen = [features[prompt].to(DEVICE) for prompt in prompts]
    seeds = torch.tensor([100 + prompt for prompt in prompts], device=DEVICE)
    with torch.inference_mode(), fastest_attention(DEVICE):
        text = model.encode_text(text_rows(model, chosen, [None] * len(prompts), guided=settings.guided))
        runner = BatchRunner(
            model,
            text,
            SCHEDULE,
            settings,
            largest_map=(64, 64),
            codebook_dim=8,
            spatial_patchify=False,
            backend=TRITON,
            packs=spec.packs_tokens,
            workspace=workspace,
        )
        make_policy = make_policy or policy_factory(spec, len(SCHEDULE), DEPTH)
        policy = make_policy(BatchContext(SCHEDULE, DEPTH, seeds))
        sample_codes(runner, seeds, policy)
        return runner.codes.summed_codes.clone(), runner.finite.clone()


def _model_in_place(*, guided=True):
    model = random_transformer(SIZES, 3, DEVICE, torch.bfloat16 if IS_GPU else torch.float32)
    model.freeze()
    scales = len(SCHEDULE)
    settings = SamplingSettings((3.0 if guided else 1.0,) * scales, (1.0,) * scales)
    with torch.inference_mode():
        workspace = Workspace(model, TRITON, None if IS_GPU else FirstBodies())
    return model, settings, workspace


@pytest.mark.parametrize("guided", [True, False] if IS_GPU else [True])
@pytest.mark.parametrize("spec", POLICIES.values(), ids=POLICIES)
def test_batches_in_place_give_the_codes_of_batches_of_their_own(spec, guided):
    if not guided and isinstance(spec, SkipvarSpec):
        pytest.skip("it leaves guidance out")
    model, settings, workspace = _model_in_place(guided=guided)
    for prompts in BATCHES:
        mine, finite = _codes(model, spec, prompts, settings, workspace)
        own, _ = _codes(model, spec, prompts, settings, None)
        assert torch.equal(mine, own)
        assert finite.all()
    usage = workspace.usage()
    assert usage.get("problem") is None
    assert not IS_GPU or usage["replays"] > 0


def test_a_batch_of_which_some_prompts_are_guided_copies_nothing_within_its_graphs():
    model, settings, workspace = _model_in_place()
    for prompts in ((0, 1, 2), (3, 4, 5), (2, 1, 3))[: 3 if IS_GPU else 2]:
        mine, _ = _codes(model, DenseSpec(), prompts, settings, workspace, GuidesTheFirst)
        own, _ = _codes(model, DenseSpec(), prompts, settings, None, GuidesTheFirst)
        assert torch.equal(mine, own)
    assert workspace.usage().get("problem") is None


class Rubbish(TorchDispatchMode):
    """Fills new tensors that nobody has written, with a number, or with random ones where it is None."""

    def __init__(self, number):
        super().__init__()
        self._number = number

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if "empty" in func.name():
            if made.is_floating_point():
                made.copy_(torch.randn(made.shape) * 1e3) if self._number is None else made.fill_(
                    self._number
                )
            else:
                low, high = (0, 2) if made.dtype == torch.bool else (-100, 100)
                made.random_(low, high)
        return made


@pytest.mark.skipif(IS_GPU, reason="a wrong index ends the process there")
@pytest.mark.parametrize("number", [float("nan"), 1e30, None])
@pytest.mark.parametrize("spec", ALL_POLICIES.values(), ids=ALL_POLICIES)
def test_what_no_kernel_has_written_is_no_index(spec, number, monkeypatch):
    """So runs the pass that notes kernels: a policy may refuse what it sees, but must read and write where it may."""
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", lambda *_, **__: None)
    model, settings, workspace = _model_in_place()
    with Rubbish(number):
        for prompts in ((0, 1, 2), (1, 3)):
            try:
                _codes(model, spec, prompts, settings, workspace)
            except (ValueError, ArithmeticError):
                continue  # refused on the host
    assert workspace.usage().get("problem") is None


def test_a_batch_keeps_the_rotations_that_its_graphs_read():
    model, _, workspace = _model_in_place()
    batch = workspace.batch(BatchShape(SCHEDULE, 2, 16, 8, SCHEDULE[-1], 1))
    kept = [batch.rotation(scale_index, (64, 64)) for scale_index in range(len(SCHEDULE))]
    for height in range(1, 100):  # more maps than the model remembers
        model.rotations.of((height, 3), (128, 64), DEVICE)
    again = [batch.rotation(scale_index, (64, 64)) for scale_index in range(len(SCHEDULE))]
    assert all(one is other for one, other in zip(kept, again, strict=True))
    assert not torch.equal(batch.rotation(1, (64, 64)), batch.rotation(1, (128, 128)))


def test_longer_texts_need_no_other_graphs():
    model, settings, workspace = _model_in_place()

    def captured():
        return workspace.usage()["graphs"] if IS_GPU else list(workspace.graphs._bodies)

    for prompts in ((0, 1, 2), (2, 1, 0)):
        _codes(model, DenseSpec(), prompts, settings, workspace)
    before = captured()
    _codes(model, DenseSpec(), (1, 3, 5), settings, workspace)  # one of 70 tokens
    assert captured() == before
