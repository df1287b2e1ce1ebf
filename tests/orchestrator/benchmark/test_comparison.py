"""Which models are loaded, shared, refused and left out."""

import pytest
import torch

from toprovar_batch.orchestrator.benchmark import comparison
from toprovar_batch.orchestrator.benchmark.accuracy_limits import Check
from toprovar_batch.orchestrator.benchmark.combinations import combine
from toprovar_batch.orchestrator.benchmark.comparison import Comparison, compare
from toprovar_batch.orchestrator.benchmark.generation_timing import CombinationTiming
from toprovar_batch.worker.errors import UserError
from toprovar_batch.worker.generator import Generator
from toprovar_batch.worker.pruning.policies.specs import DenseSpec, FixedExitSpec
from toprovar_batch.worker.specs import ArchitectureSpec, EngineSpec, ImageSpec, ModelSpec

ARCHITECTURE = ArchitectureSpec(depth=1, width=64, num_heads=2)


def _asked(backends, dtypes, policies=None):
    specs = {
        dtype: EngineSpec(
            model=ModelSpec(random_weights=True, architecture=ARCHITECTURE, dtype=dtype),
            image=ImageSpec(resolution="0.06M"),
        )
        for dtype in dtypes
    }
    policies = policies or {"dense": DenseSpec()}
    return Comparison(specs, policies, combine([*policies], [1], backends, dtypes), "cpu", 0, 1)


@pytest.fixture
def generators(monkeypatch):
    """Those that would be timed; nothing is."""
    given = []

    def record(found, combinations, **_options):
        given.extend(found)
        return [CombinationTiming(each) for each in combinations]

    monkeypatch.setattr(comparison, "time_combinations", record)
    monkeypatch.setattr(comparison, "check_accuracy", lambda *_arguments, **_options: Check(0.0))
    return given


def test_a_dtype_is_loaded_once_for_all_backends_policies_and_names(generators):
    policies = {"dense": DenseSpec(), "exit": FixedExitSpec(start_scale=3)}
    compare(_asked(["auto", "torch"], ["auto", "float32", "bfloat16"], policies))
    assert len(generators) == 12
    of_dtype = {}
    for generator in generators:
        of_dtype.setdefault(generator.describe()["dtype"], set()).add(id(generator.model))
    assert sorted(of_dtype) == ["bfloat16", "float32"]
    assert all(len(models) == 1 for models in of_dtype.values())
    assert [generator.spec.policy.name for generator in generators[:2]] == ["dense", "fixed_exit"]


def test_each_backend_and_dtype_is_checked_once_and_only_the_sound_are_loaded(generators, monkeypatch):
    checked = []

    def check(_spec, *, dtype, backend, **_options):
        checked.append((backend.name, dtype))
        return Check(1.0, "check failed: so") if dtype == torch.bfloat16 else Check(0.0)

    monkeypatch.setattr(comparison, "check_accuracy", check)
    found = compare(_asked(["auto", "torch"], ["bfloat16", "float32"]))
    assert checked == [("torch", torch.bfloat16), ("torch", torch.float32)]
    assert [timing.error for timing in found.timings] == ["check failed: so"] * 2 + [None] * 2
    assert [generator.describe()["dtype"] for generator in generators] == ["float32"] * 2
    assert list(found.engines) == [("auto", "float32"), ("torch", "float32")]


def test_a_second_model_that_does_not_fit_is_said_in_one_sentence(generators, monkeypatch):
    setup = Generator.setup

    def limited(self):
        if self.spec.model.dtype == "bfloat16":
            raise torch.OutOfMemoryError
        setup(self)

    monkeypatch.setattr(Generator, "setup", limited)
    with pytest.raises(
        UserError, match="--dtype bfloat16: the GPU's memory does not hold this model beside that in float32"
    ):
        compare(_asked(["auto"], ["float32", "bfloat16"]))


def test_a_policy_that_does_not_fit_is_named_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(Generator, "setup", None)
    with pytest.raises(UserError, match=r"--policy late: .*at most 6"):
        compare(_asked(["auto"], ["auto"], {"late": FixedExitSpec(start_scale=7)}))
