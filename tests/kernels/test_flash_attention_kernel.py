"""The attention kernels, and what chooses them."""

import math
from pathlib import Path

import pytest
import torch

from toprovar_batch.kernels.flash_attention import AttentionInputs, attention, attention_entropy
from toprovar_batch.kernels.flash_attention.config import choose_config, shared_memory_room, variants
from toprovar_batch.kernels.layout import KeyLengths, TokenLayout
from toprovar_batch.kernels.ops import PYTORCH, Backend, attend, resolve_backend
from toprovar_batch.worker.errors import ModelSpecError
from toprovar_batch.worker.runtime import resolve_kernels

CPU = torch.device("cpu")


@pytest.mark.slow
def test_the_kernels_pass_their_cases(run_cases):
    pytest.importorskip("triton")
    assert run_cases(Path(__file__).with_name("flash_attention_cases.py")) > 50


def test_without_a_gpu_pytorch_runs_and_triton_is_refused_with_the_reason():
    assert resolve_backend("torch", CPU, 128) == PYTORCH
    chosen = resolve_backend("auto", CPU, 128)
    assert chosen.name == "torch"
    assert "cpu" in chosen.reason
    with pytest.raises(ValueError, match=r"cannot run here: .* this is cpu; choose auto or torch"):
        resolve_backend("triton", CPU, 128)
    with pytest.raises(ValueError, match="'cuda'"):
        resolve_backend("cuda", CPU, 128)


def test_the_setting_is_named_where_its_kernels_cannot_run():
    with pytest.raises(ModelSpecError, match=r"^runtime\.backend: the triton backend cannot run here"):
        resolve_kernels("triton", CPU, 64)
    assert resolve_kernels("auto", CPU, 64).name == "torch"


@pytest.mark.parametrize(
    ("capability", "head_dim", "reason"),
    [((7, 5), 128, "8.0"), ((9, 0), 320, "up to 256 channels"), ((9, 0), 128, "Triton fails")],
)
def test_what_keeps_triton_from_running_is_said(monkeypatch, capability, head_dim, reason):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "a card")
    gpu = torch.device("cuda")
    assert reason in resolve_backend("auto", gpu, head_dim).reason  # no GPU here: the small kernel fails
    with pytest.raises(ValueError, match=reason):
        resolve_backend("triton", gpu, head_dim)


def _inputs(queries, keys):
    generator = torch.Generator().manual_seed(5)
    q = torch.randn(sum(queries), 2, 32, generator=generator)
    k, v = torch.randn(2, len(keys), 2, max(keys), 32, generator=generator)
    return q, k, v, TokenLayout(queries, CPU), KeyLengths(keys, CPU)


@pytest.mark.parametrize(("queries", "keys"), [((3, 3), (7, 7)), ((3, 0), (7, 2))])
def test_attend_gives_attention_and_entropy_together(queries, keys):
    q, k, v, layout, lengths = _inputs(queries, keys)
    out, entropy = attend(
        AttentionInputs(q, k, v, layout, lengths, 0.5), entropy_rows=(0, 1), backend=PYTORCH
    )
    assert torch.equal(out, attention(AttentionInputs(q, k, v, layout, lengths, 0.5)))
    assert torch.equal(entropy, attention_entropy(AttentionInputs(q, k, k, layout, lengths, 0.5)))
    assert attend(AttentionInputs(q, k, v, layout, lengths, 0.5), entropy_rows=(), backend=PYTORCH)[1] is None


@pytest.mark.parametrize("rows", [(0,), (0, 1), (2,), (2, 0), (1, 2), (0, 1, 2, 3)])
@pytest.mark.parametrize("queries", [(3, 3, 3, 3), (3, 2, 5, 0)])
def test_attend_gives_the_entropy_of_some_rows_on_either_backend(monkeypatch, queries, rows):
    launch = pytest.importorskip("toprovar_batch.kernels.flash_attention.launch")
    inputs = q, k, _, layout, lengths = _inputs(queries, (7, 9, 5, 6))
    whole = attention_entropy(AttentionInputs(q, k, k, layout, lengths, 0.5))
    expected = torch.cat([whole[layout.row_slices[row]] for row in rows])
    assert torch.equal(attend(AttentionInputs(*inputs, 0.5), entropy_rows=rows, backend=PYTORCH)[1], expected)
    monkeypatch.setattr(
        launch, "flash_attention", lambda inputs, **_options: (inputs.q, whole[: len(inputs.q)])
    )
    triton = Backend("triton", "for this test")
    assert torch.equal(attend(AttentionInputs(*inputs, 0.5), entropy_rows=rows, backend=triton)[1], expected)


@pytest.mark.parametrize(
    ("queries", "keys", "entropy_rows", "expected"),
    [
        ((3, 3), (7, 7), (), []),
        ((3, 3), (7, 7), (0,), [(3, 1)]),
        ((3, 3), (7, 7), (1, 0), [(6, 2)]),
        ((3, 3), (7, 6), (), [(6, 0)]),
        ((3, 2), (7, 7), (), [(5, 0)]),
        ((3, 2), (7, 7), (0,), [(5, 1)]),
    ],
)
def test_the_kernel_takes_rows_that_differ_and_of_others_those_that_are_watched(
    monkeypatch, queries, keys, entropy_rows, expected
):
    launch = pytest.importorskip("toprovar_batch.kernels.flash_attention.launch")
    calls = []

    def kernel(inputs, *, with_entropy, watched_rows):
        assert with_entropy == (watched_rows > 0)
        calls.append((len(inputs.q), watched_rows))
        return inputs.q, torch.zeros(len(inputs.q)) if with_entropy else None

    monkeypatch.setattr(launch, "flash_attention", kernel)
    triton = Backend("triton", "for this test")
    attend(AttentionInputs(*_inputs(queries, keys), 0.5), entropy_rows=entropy_rows, backend=triton)
    assert calls == expected


@pytest.mark.parametrize(
    ("capability", "dtype", "chance_alike", "by_kernel"),
    [
        ((9, 0), torch.bfloat16, False, True),
        ((9, 0), torch.float32, False, False),
        ((8, 9), torch.bfloat16, False, False),
        ((8, 9), torch.bfloat16, True, True),
    ],
)
def test_rows_that_are_alike_go_to_the_hopper_kernel_or_where_they_are_so_by_chance(
    monkeypatch, capability, dtype, chance_alike, by_kernel
):
    launch = pytest.importorskip("toprovar_batch.kernels.flash_attention.launch")
    calls = []
    monkeypatch.setattr(
        launch, "flash_attention", lambda inputs, **_options: calls.append(1) or (inputs.q, None)
    )
    monkeypatch.setattr(
        "toprovar_batch.kernels.flash_attention.attend.capability_of", lambda _device: capability
    )
    q, k, v = (torch.zeros(*shape, 128, dtype=dtype) for shape in ((4, 1), (2, 1, 6), (2, 1, 6)))
    layout, lengths = TokenLayout((2, 2), CPU), KeyLengths((6, 6), CPU)
    attend(
        AttentionInputs(q, k, v, layout, lengths, 0.5),
        entropy_rows=(),
        chance_alike=chance_alike,
        backend=Backend("triton", "for this test"),
    )
    assert calls == [1] * by_kernel


@pytest.mark.parametrize(("rows", "described"), [(2, True), (7, True), (9, False)])
def test_bulk_copies_are_used_only_where_their_32_bits_count_every_row_of_keys(rows, described):
    launch = pytest.importorskip("toprovar_batch.kernels.flash_attention.launch")
    strides = (2**28 * 128, 2**20 * 128, 128, 1)  # elements; a row of keys is 2^28 times 128 from the next
    keys = torch.empty_strided((rows, 4, 10521, 128), strides, dtype=torch.bfloat16, device="meta")
    assert launch._is_describable(keys) is described


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (10, 0), (12, 0)])
@pytest.mark.parametrize("head_dim", [32, 40, 64, 96, 112, 128, 256])
def test_configurations_fit_their_gpu(capability, head_dim):
    chosen = choose_config(capability, head_dim, torch.bfloat16)
    tried = variants(capability, head_dim)
    assert tried[0] == chosen
    for config in tried:
        assert config.shared_memory(head_dim) <= shared_memory_room(capability), config
        assert math.log2(config.block_m * config.block_n).is_integer()
        assert config.kernel == "triton" or capability == (9, 0)
    assert all(
        choose_config(capability, head_dim, dtype) == chosen for dtype in (torch.bfloat16, torch.float16)
    )
