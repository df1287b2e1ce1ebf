"""Products whose rows do not depend on each other's number."""

import pytest
import torch
from torch.nn.functional import linear

from toprovar_batch.kernels.ops import PYTORCH
from toprovar_batch.worker.infinity import row_linear
from toprovar_batch.worker.infinity.config import TransformerArchitecture
from toprovar_batch.worker.infinity.row_linear import RowLinear
from toprovar_batch.worker.models import random_transformer
from toprovar_batch.worker.row_independence import MOST_PADDING, least_rows, make_rows_independent

CPU = torch.device("cpu")
SIZES = TransformerArchitecture(2, 64, 2, 24, 8)


@pytest.fixture
def model():
    return random_transformer(SIZES, 3, CPU, torch.float32)


def _library(monkeypatch, other_below):
    """Products that come out otherwise where they have few rows, as a GPU's may; float64 makes the rest exact."""

    def product(x, weight, bias):
        out = linear(x.double(), weight.double(), None if bias is None else bias.double()).float()
        return out if len(x) >= other_below else out * (1 + 2**-20)

    monkeypatch.setattr(row_linear, "linear", product)


def test_a_library_that_treats_the_last_of_many_rows_otherwise_is_found_out(model, monkeypatch):
    def product(x, weight, bias):
        out = linear(x.double(), weight.double(), None if bias is None else bias.double()).float()
        if len(x) > 20000:
            out[-100:] *= 1 + 2**-20
        return out

    monkeypatch.setattr(row_linear, "linear", product)
    assert make_rows_independent(model, PYTORCH) == (1, False)


def test_products_are_tried_as_they_run(model, monkeypatch):
    """With a bias, and in one with what follows, a library may take another kernel."""
    seen = []
    real = row_linear.linear
    monkeypatch.setattr(
        row_linear, "linear", lambda x, weight, bias: seen.append((weight, bias)) or real(x, weight, bias)
    )
    least_rows(model, PYTORCH)
    attention = model.blocks[0].sa
    biases = [bias for weight, bias in seen if weight is attention.mat_qkv.weight]
    assert biases
    assert all(torch.equal(bias, attention.qkv_bias()) for bias in biases)


@pytest.mark.parametrize(("other_below", "found"), [(1, 1), (33, 64), (64, 64), (200, 256), (512, 512)])
def test_the_least_number_of_rows_is_found_by_trying(model, monkeypatch, other_below, found):
    _library(monkeypatch, other_below)
    assert least_rows(model, PYTORCH) == found


def test_a_library_that_needs_too_many_rows_is_left_as_it_is(model, monkeypatch):
    _library(monkeypatch, MOST_PADDING + 1)
    assert make_rows_independent(model, PYTORCH) == (None, False)
    assert model.blocks[1].ffn.fc2.least_rows == 1


def test_every_product_of_the_blocks_then_gives_a_row_alone_what_it_gives_among_many(model, monkeypatch):
    _library(monkeypatch, 64)
    assert make_rows_independent(model, PYTORCH) == (64, True)
    layers = [layer for layer in model.modules() if isinstance(layer, RowLinear)]
    assert len(layers) == 6 * SIZES.depth + 1
    for layer in layers:
        x = torch.randn(100, layer.in_features)
        assert torch.equal(layer(x[7:9]), layer(x)[7:9])
        if layer.bias is not None and layer is not model.word_embed:
            out = torch.empty(2, layer.out_features)
            assert torch.equal(layer.into(x[7:9], out), layer(x)[7:9])
            assert torch.equal(out, layer(x)[7:9])
