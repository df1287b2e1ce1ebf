"""A loaded model under other kernels."""

from dataclasses import fields, replace

import pytest

from toprovar_batch.kernels.ops import Backend
from toprovar_batch.worker import loaded
from toprovar_batch.worker.errors import ModelSpecError
from toprovar_batch.worker.loaded import LoadedModel, load_model
from toprovar_batch.worker.resolved import resolve_model
from toprovar_batch.worker.specs import ArchitectureSpec, ModelSpec, RuntimeSpec

MODEL = resolve_model(
    ModelSpec(random_weights=True, architecture=ArchitectureSpec(depth=1, width=64, num_heads=2))
)
HEAD_DIM = MODEL.transformer.head_dim
OF_THE_KERNELS = {"backend", "fallback", "decoder", "workspace"}
SHARED = {
    "model", "device", "dtype", "free_bytes", "seconds", "captures", "least_rows", "rows_independent", "text_chunks",
}  # fmt: skip


@pytest.fixture
def model():
    return load_model(MODEL, RuntimeSpec(device="cpu"))


def test_other_kernels_share_the_weights_and_nothing_that_belongs_to_kernels(model, monkeypatch):
    assert {
        field.name for field in fields(LoadedModel)
    } == SHARED | OF_THE_KERNELS  # a new field is one or the other
    other = Backend("triton", "for a test")
    monkeypatch.setattr(loaded, "resolve_kernels", lambda *_arguments: other)
    model = replace(model, fallback="a sentence")
    made = model.with_backend("triton", HEAD_DIM)
    assert all(getattr(made, name) is getattr(model, name) for name in SHARED)
    assert (made.backend, made.fallback) == (other, None)


def test_the_kernels_that_run_already_change_nothing(model):
    assert model.with_backend("torch", HEAD_DIM) is model


def test_kernels_that_cannot_run_are_refused(model):
    with pytest.raises(ModelSpecError, match="the triton backend cannot run here"):
        model.with_backend("triton", HEAD_DIM)


def test_a_description_is_made_of_plain_values_that_the_driver_reads_without_pytorch(model):
    values = [*model.describe().values(), *model.usage().values()]
    assert {type(value) for value in values} <= {str, int, float, bool, type(None)}
