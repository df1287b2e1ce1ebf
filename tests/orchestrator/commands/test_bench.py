"""The bench command: its record, its table, and no speed where the result is wrong."""

import json

import pytest
import torch
from click.testing import CliRunner

from toprovar_batch.orchestrator.benchmark import accuracy
from toprovar_batch.orchestrator.cli import main
from toprovar_batch.orchestrator.commands.bench import measure
from toprovar_batch.worker.errors import RunFailedError
from toprovar_batch.worker.generator import Generator
from toprovar_batch.worker.resolved import resolve
from toprovar_batch.worker.specs import ArchitectureSpec, EngineSpec, ImageSpec, ModelSpec, RuntimeSpec


def _bench(*arguments):
    return CliRunner().invoke(
        main, ["bench", "--device", "cpu", "--random-weights", "--resolution", "0.06M", *arguments]
    )


def test_json_has_every_batch_with_its_split():
    result = _bench("--batch", "1,2", "--repeats", "2", "--warmup", "0", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert [timing["batch"] for timing in record["batches"]] == [1, 2]
    for timing in record["batches"]:
        assert len(timing["seconds"]) == 2
        assert len(timing["scale_ms"]) == 7
        assert 0 < sum(timing["scale_ms"]) <= timing["transformer_ms"] * 1.5
        parts = sum(timing[f"{part}_ms"] for part in ("text", "transformer", "decode", "encode"))
        assert 0 < parts <= 1.5e3 * max(timing["seconds"])
        assert timing["images_per_second"] > 0
        assert timing["peak_memory_gb"] is None
    assert record["engine"]["device_type"] == "cpu"
    assert record["engine"]["torch"] == torch.__version__
    assert "python" in record


@pytest.mark.slow
def test_policies_are_timed_by_name_or_file(tmp_path):
    file = tmp_path / "exit.yaml"
    file.write_text("name: fixed_exit\nstart_scale: 5\nprovenance: {date: 2026-01-01}\n")
    common = ("--batch", "1", "--repeats", "1", "--warmup", "0")
    result = _bench(*common, "--policy", "dense", "--policy", "paper-2b", "--policy", str(file))
    assert result.exit_code == 0, result.output
    header, *rows = (line.split() for line in result.stdout.splitlines()[1:5])
    assert header[:5] == ["batch", "policy", "token-layers", "x", "dense"]
    assert [row[1] for row in rows] == ["dense", "paper-2b", str(file)]
    assert [rows[0][2], rows[0][3], rows[2][2]] == ["100.0%", "1.00", "23.2%"]
    record = json.loads(_bench(*common, "--policy", "paper-2b", "--policy", str(file), "--json").stdout)
    assert [timing["policy"] for timing in record["batches"]] == list(record["policies"])
    assert record["policies"][str(file)]["start_scale"] == 5
    refused = _bench(*common, "--policy", "fast")
    assert refused.exit_code == 2
    assert "--policy: policy.name must be one of dense" in refused.output


def test_table_names_model_device_and_every_batch():
    result = _bench("--batch", "1", "--repeats", "1", "--warmup", "0")
    assert result.exit_code == 0, result.output
    first, header, row, scales = result.stdout.splitlines()
    assert first.startswith("tiny")
    assert "float32 on" in first
    assert "torch kernels" in first
    assert header.split()[0] == "batch"
    assert row.split()[:2] == ["1", "dense"]
    assert scales.startswith("batch 1, dense, ms of each scale")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--batch", "1,x"], "--batch"),
        (["--batch", "0"], "--batch"),
        (["--model", "infinity-2c"], "infinity-2b"),
        (["--resolution", "2M"], "--resolution"),
        (["--h-div-w", "9"], "--h-div-w"),
        (["--backend", "triton"], "runtime.backend"),
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
        measure(generator, "dense", 1, 1.0, 0, 1)


def test_accuracy_is_printed_by_scale_with_the_worst(monkeypatch):
    found = [accuracy.ScaleAccuracy(1, 1e-3, 0.0), accuracy.ScaleAccuracy(4, 2e-3, 0.25)]
    monkeypatch.setattr(accuracy, "measure_accuracy", lambda *_arguments, **_options: found)
    done = _bench("--accuracy")
    assert done.exit_code == 0, done.output
    assert "bfloat16      4 tokens  2.0e-03  25.000%" in done.output
    assert "float32   worst scale  2.0e-03" in done.output
    dtypes = json.loads(_bench("--accuracy", "--json").output)["dtypes"]
    assert dtypes["bfloat16"][1] == {"tokens": 4, "rms_error": 2e-3, "flipped_bits": 0.25}
