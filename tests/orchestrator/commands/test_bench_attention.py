"""The attention benchmark: what it checks, what it times, and what it says where it cannot."""

import math

import pytest
import torch
from click.testing import CliRunner

from toprovar_batch.kernels.flash_attention import attention, attention_entropy
from toprovar_batch.orchestrator.cli import main

CPU = torch.device("cpu")

pytest.importorskip("triton")
check = pytest.importorskip("toprovar_batch.orchestrator.benchmark.attention_check")
timing = pytest.importorskip("toprovar_batch.orchestrator.benchmark.attention_timing")


def _twin(inputs, *, with_entropy, watched_rows=None, config=None):
    """Answers as the kernel gives them, by PyTorch, row by row; NaN as the entropy of rows that nobody watches."""
    del config
    out, entropy = torch.empty_like(inputs.q), torch.empty(len(inputs.q))
    for row, part in enumerate(inputs.layout.row_slices):
        out[part], entropy[part] = attention(inputs.row(row)), attention_entropy(inputs.row(row))
        if watched_rows is not None and row >= watched_rows:
            entropy[part] = math.nan
    return out, entropy if with_entropy else None


def _entropy_off(call, amount):
    out, entropy = call
    return out, None if entropy is None else entropy + amount


def _is_partly_watched(call):
    return call[1] is not None and bool(call[1].isnan().any())


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (lambda call, _layout: call, None),
        (lambda call, _layout: (call[0] * 1.01, call[1]), "the output is"),
        (lambda call, _layout: (call[0] * math.nan, call[1]), "the output is nan"),
        (lambda call, _layout: _entropy_off(call, 1e-3), "the entropy is"),
        (
            lambda call, layout: (call[0] + 1e-7 * (layout.num_rows > 1), call[1]),
            "other bits alone than in a batch",
        ),
        (lambda call, _layout: (call[0] + 1e-7 * (call[1] is None), call[1]), "without entropy"),
        (
            lambda call, _layout: (call[0] + 1e-7 * _is_partly_watched(call), call[1]),
            "where 1 of 6 rows are watched",
        ),
        (
            lambda call, _layout: _entropy_off(call, 1e-7 * _is_partly_watched(call)),
            "where 1 of 6 rows are watched",
        ),
    ],
)
def test_a_fault_is_found_and_named(monkeypatch, answer, fault):
    def kernel(inputs, **options):
        return answer(_twin(inputs, **options), inputs.layout)

    monkeypatch.setattr(check, "flash_attention", kernel)
    found = check.find_fault(32, torch.float32, CPU, None)
    assert (found is None) if fault is None else (fault in found)


def test_the_answers_of_a_timed_case_are_checked_on_some_queries():
    inputs = check.make_inputs(2, 32, (70, 0, 9), (80, 4, 12), torch.float32, CPU)
    out, entropy = _twin(inputs, with_entropy=True)
    assert check.find_fault_at(inputs, out, entropy) is None
    out[-1] += 0.01
    assert check.find_fault_at(inputs, out, entropy).startswith("row 2: the output")


def test_dense_cases_have_the_shapes_of_the_models():
    case = timing.dense_cases("infinity-2b", 2, (12,))[0]
    assert (case.heads, case.head_dim, case.queries, case.keys) == (16, 128, (4096,) * 2, (10521,) * 2)
    assert case.name == "2B 4096 x 10521, 2 rows"
    assert case.flops == 4 * 16 * 128 * 2 * 4096 * 10521
    assert timing.dense_cases("infinity-8b", 2, (9,))[0].heads == 28
    assert timing.dense_cases("tiny", 8, (9,))[0].head_dim == 64
    assert not any(ragged.is_dense for ragged in timing.ragged_cases())


def test_ratios_compare_neighbours_in_time():
    case = timing.AttentionCase("a case", 1, 64, (10,), (10,))
    measured = timing.CaseTiming(case, {"entropy": [2.0, 4.0, 3.0], "flash": [4.0, 8.0, 3.0]})
    assert measured.ratio("entropy", "flash") == 0.5
    assert measured.ratio("entropy", "cudnn") is None
    assert measured.spread("entropy") == pytest.approx(2 / 3)
    assert measured.teraflops("entropy") == pytest.approx(case.flops / 3e-3 / 1e12)


def test_without_a_gpu_the_command_says_so():
    result = CliRunner().invoke(main, ["bench-attention"])
    assert result.exit_code == 2
    assert (
        result.stderr.strip() == "Error: bench-attention: the kernels run on GPUs, and PyTorch sees none here"
    )
