"""The bench command: its record, its table, and no speed where the result is wrong."""

import json
import math

import pytest
import torch
from click.testing import CliRunner

from toprovar_batch.orchestrator.benchmark import accuracy, accuracy_limits
from toprovar_batch.orchestrator.benchmark.combinations import Combination
from toprovar_batch.orchestrator.benchmark.generation_timing import time_combinations
from toprovar_batch.orchestrator.cli import main
from toprovar_batch.worker.errors import RunFailedError
from toprovar_batch.worker.generator import Generator
from toprovar_batch.worker.resolved import resolve
from toprovar_batch.worker.specs import ArchitectureSpec, EngineSpec, ImageSpec, ModelSpec, RuntimeSpec


def _bench(*arguments):
    return CliRunner().invoke(
        main, ["bench", "--device", "cpu", "--random-weights", "--resolution", "0.06M", *arguments]
    )


def test_json_has_every_combination_with_its_split():
    options = ("--batch", "1,2", "--repeats", "2", "--warmup", "0", "--price-per-hour", "2", "--json")
    result = _bench(*options)
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert [timing["batch"] for timing in record["batches"]] == [1, 2]
    for timing in record["batches"]:
        assert (timing["policy"], timing["backend"], timing["dtype"]) == ("dense", "auto", "auto")
        assert len(timing["seconds"]) == len(timing["speed_over_first"]) == 2
        assert len(timing["scale_ms"]) == 7
        assert list(timing["phase_ms"]) == ["text", "transformer", "decode", "encode"]
        assert all(len(values) == 2 for values in timing["phase_ms"].values())
        for repeat, seconds in enumerate(timing["seconds"]):
            parts = sum(values[repeat] for values in timing["phase_ms"].values())
            assert 0 < parts <= 1e3 * seconds
        assert timing["cost"]["images_per_hour"] == 3600 * timing["images_per_second"]
        assert timing["cost"]["images_per_dollar"] == 1800 * timing["images_per_second"]
        assert timing["peak_memory_gb"] is timing["floors"] is timing["launches"] is None
    assert record["batches"][0]["speed_over_first"] == [1, 1]
    (engine,) = record["engines"]
    assert engine["device_type"] == "cpu"
    assert engine["torch"] == torch.__version__
    assert record["checks"] == [{"backend": "auto", "dtype": "auto", "worst_rms_error": 0, "fault": None}]
    assert "python" in record


@pytest.mark.slow
def test_policies_are_timed_by_name_or_file(tmp_path):
    file = tmp_path / "exit.yaml"
    file.write_text("name: fixed_exit\nstart_scale: 5\nprovenance: {date: 2026-01-01}\n")
    common = ("--batch", "1", "--repeats", "1", "--warmup", "0")
    result = _bench(*common, "--policy", "dense", "--policy", "paper-2b", "--policy", str(file), "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert [timing["policy"] for timing in record["batches"]] == ["dense", "paper-2b", str(file)]
    assert list(record["policies"]) == ["dense", "paper-2b", str(file)]
    assert record["policies"][str(file)]["start_scale"] == 5
    fractions = [round(timing["token_layer_fraction"], 3) for timing in record["batches"]]
    assert (fractions[0], fractions[2]) == (1, 0.232)
    refused = _bench(*common, "--policy", "fast")
    assert refused.exit_code == 2
    assert "--policy: name must be one of dense" in refused.output


def test_tables_name_what_ran_and_a_check_that_failed_gives_no_speed(monkeypatch):
    off = [accuracy.ScaleAccuracy(1, 1e-3, 0.0), accuracy.ScaleAccuracy(4, 3e-2, 0.25)]
    monkeypatch.setattr(accuracy_limits, "measure_accuracy", lambda *_arguments, **_options: off)
    monkeypatch.setattr("toprovar_batch.orchestrator.steps._LINE_S", math.inf)  # however slow the machine
    result = _bench(
        *("--batch", "1", "--repeats", "1", "--warmup", "0", "--profile"),
        *("--dtype", "bfloat16", "--dtype", "float32"),
    )
    assert result.exit_code == 1
    first, header, row, phases, *_, fault = result.stdout.splitlines()
    assert first.startswith("tiny")
    assert header.split()[:5] == ["#", "batch", "policy", "dtype", "backend"]
    assert row.split()[:6] == ["2", "1", "dense", "float32", "torch", "100.0%"]
    assert row.split()[-2:] == ["-", "0.0e+00"]
    assert phases.split() == [
        "#",
        "phase",
        "ms",
        "min..max",
        "floor",
        "ms",
        "of",
        "floor",
        "busy",
        "kernels",
        "host",
        "launches",
    ]
    (transformer,) = (line.split() for line in result.stdout.splitlines() if " transformer " in line)
    assert transformer[-5:] == ["-"] * 5
    assert "images per CPU hour; ms of each scale: " in result.stdout
    said = "check failed: scale 1 rms 3.0e-02 over limit 0.02"
    assert fault == f"1  batch 1, dense, dtype bfloat16, backend auto: {said}"
    assert result.stderr.splitlines() == [  # what goes on is no part of what was found
        "checking bfloat16 by torch",
        "checking float32 by torch",
        "loading weights",
        "warming up",
        "timing batches",
        "profiling batches",
        f"Error: 1 of 2 pairs of backend and dtype: {said}",
    ]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--batch", "1,x"], "--batch"),
        (["--batch", "0"], "--batch"),
        (
            ["--model", "infinity-2c"],
            "Error: --model: 'infinity-2c' does not exist; did you mean 'infinity-2b'?",
        ),
        (["--resolution", "2M"], "--resolution must be one of 0.06M, 0.25M, 0.60M, 1M, got the text '2M'"),
        (["--h-div-w", "9"], "--h-div-w must be at most 3, got 9.0"),
        (["--backend", "torch", "--backend", "triton"], "runtime.backend"),
        (["--dtype", "float64"], "--dtype"),
        (["--price-per-hour", "0"], "--price-per-hour"),
        (["--price-per-hour", "nan"], "--price-per-hour"),
        (["--policy", "paper-8b"], "paper-2b and a policy file (.yaml) are taken as well"),
        (["--accuracy", "--backend", "torch", "--backend", "auto"], "--accuracy"),
    ],
)
def test_bad_options_are_named(arguments, named):
    result = _bench(*arguments)
    assert result.exit_code == 2
    assert named in result.stderr
    assert "Traceback" not in result.stderr


def test_nothing_is_timed_when_the_model_gives_no_numbers():
    sizes = ArchitectureSpec(depth=1, width=64, num_heads=2)
    spec = EngineSpec(
        model=ModelSpec(random_weights=True, architecture=sizes), image=ImageSpec(resolution="0.06M")
    )
    generator = Generator(resolve(spec), RuntimeSpec(device="cpu"))
    generator.setup()
    generator.model.transformer.head.weight[0] = float("nan")
    with pytest.raises(RunFailedError, match="not finite"):
        time_combinations([generator], [Combination("dense", 1)], warmup=0, repeats=1, ceilings=[None])


def test_accuracy_is_printed_by_scale_with_the_worst(monkeypatch):
    found = [accuracy.ScaleAccuracy(1, 1e-3, 0.0), accuracy.ScaleAccuracy(4, 2e-3, 0.25)]
    monkeypatch.setattr(accuracy, "measure_accuracy", lambda *_arguments, **_options: found)
    done = _bench("--accuracy")
    assert done.exit_code == 0, done.output
    assert "bfloat16      4 tokens  2.0e-03  25.000%" in done.output
    assert "float32   worst scale  2.0e-03" in done.output
    dtypes = json.loads(_bench("--accuracy", "--json").stdout)["dtypes"]
    assert dtypes["bfloat16"][1] == {"tokens": 4, "rms_error": 2e-3, "flipped_bits": 0.25}
