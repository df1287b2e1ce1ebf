"""The command line: fast help, and one line for every mistake."""

import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from toprovar_batch.orchestrator import cli
from toprovar_batch.orchestrator.commands import submit
from toprovar_batch.orchestrator.console import echo
from toprovar_batch.worker.errors import PromptSourceError, RunFailedError


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Write a job (and other files) into an empty folder, and run a command there."""
    monkeypatch.chdir(tmp_path)

    def run_command(*arguments, job="", **files):
        for name, content in files.items():
            path = tmp_path / name.replace("__", ".")
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        (tmp_path / "job.yaml").write_text(job)
        return CliRunner().invoke(cli.main, arguments, prog_name="toprovar-batch")

    return run_command


def test_help_names_every_command_and_imports_none():
    code = (
        "import sys; from click.testing import CliRunner; from toprovar_batch.orchestrator.cli import main, COMMANDS\n"
        "text = CliRunner().invoke(main, ['--help']).output\n"
        "assert all(name in text for name in COMMANDS), text\n"
        "heavy = {'torch', 'ray', 'pyarrow', 'pydantic', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("policy", ["dense", "detail", "fastvar", "fixed_exit", "skipvar", "toprovar"])
def test_a_job_without_checkpoints_of_its_own_is_checked_without_pytorch(pytestconfig, tmp_path, policy):
    job = str(pytestconfig.rootpath / "jobs/demo.yaml")
    code = (
        "import sys; from click.testing import CliRunner; from toprovar_batch.orchestrator.cli import main\n"
        "result = CliRunner().invoke(main, ['validate', *sys.argv[1:]])\n"
        "assert result.exit_code == 0, result.output\n"
        "heavy = {'torch', 'transformers', 'ray', 'pyarrow.dataset'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    options = ["--set", f"policy={policy}", "--output", str(tmp_path / "out")]
    subprocess.run([sys.executable, "-c", code, job, *options], check=True)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_in_the_table_exists(name):
    assert isinstance(cli.main.get_command(click.Context(cli.main), name), click.Command)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["valdate"], "No such command 'valdate'"),
        (["--loud", "validate"], "No such option"),
        (["validate"], "Missing argument 'JOB'"),
        (["bench", "--batch", "0"], "'0' is no list of positive batch sizes"),
        (["bench", "--repeats", "0"], "0 is not in the range x>=1"),
    ],
)
def test_a_refused_command_line_is_one_line(run, arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def test_no_command_at_all_shows_the_help(run):
    assert "Commands:" in run().output


def test_the_help_promises_what_there_is(pytestconfig):
    said = CliRunner().invoke(cli.main, ["--help"]).output
    project = tomllib.loads((pytestconfig.rootpath / "pyproject.toml").read_text())["project"]
    assert "Infinity with entropy pruning, sharded over GPUs by Ray" in " ".join(said.split())
    assert "Infinity with entropy pruning, sharded over GPUs by Ray" in project["description"]


@pytest.mark.parametrize(("error", "code"), [(PromptSourceError, 2), (RunFailedError, 1)])
def test_an_error_is_one_line_with_its_exit_code(monkeypatch, error, code):
    @click.command()
    def failing():
        raise error("p\udcff.txt:\n  it   broke")

    monkeypatch.setattr(cli.LazyGroup, "get_command", lambda *_: failing)
    result = CliRunner().invoke(cli.main, ["failing"])
    assert (result.exit_code, result.stderr, result.stdout) == (code, "Error: p\\udcff.txt: it broke\n", "")


def test_an_unforeseen_error_is_not_hidden(monkeypatch):
    @click.command()
    def failing():
        raise ZeroDivisionError

    monkeypatch.setattr(cli.LazyGroup, "get_command", lambda *_: failing)
    assert isinstance(CliRunner().invoke(cli.main, ["failing"]).exception, ZeroDivisionError)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_gives_its_exit_code_wherever_it_comes(monkeypatch, number, code):
    @click.command()
    def stopped():
        signal.raise_signal(number)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(cli.LazyGroup, "get_command", lambda *_: stopped)
    result = CliRunner().invoke(cli.main, ["stopped"])
    assert (result.exit_code, result.stderr) == (code, f"stopped by {number.name}\n")
    assert signal.getsignal(signal.SIGTERM) == before


SAY_TWICE = """
import click, sys
from toprovar_batch.orchestrator import cli

@click.command()
def saying():
    for _ in range(2):
        print("a line", file=sys.stderr, flush=True)
        click.echo("Warning: a line", err=True)
    print("done", flush=True)

cli.LazyGroup.get_command = lambda *_: saying
cli.main(["saying"])
"""


@pytest.mark.parametrize("stderr", ["2>/dev/full", "2>&-", "2> >(exec true)"])
def test_a_stderr_that_is_full_closed_or_unread_ends_nothing(stderr):
    command = ["bash", "-c", f'"$0" -c "$1" {stderr}', sys.executable, SAY_TWICE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n")


PRINT_TWICE = """
import click, sys
from toprovar_batch.orchestrator import cli
from toprovar_batch.orchestrator.console import echo, echo_json
from toprovar_batch.orchestrator.forgiving_stream import forgiving

def told():
    echo("a line")
    echo_json({})
    print("done", file=sys.stderr)

commands = {"plain": click.command()(told), "forgiving": click.command()(forgiving("stdout")(told))}
cli.LazyGroup.get_command = lambda _, __, name: commands[name]
cli.main(sys.argv[1:])
"""


@pytest.mark.parametrize("stdout", [">/dev/full", ">&-", "> >(exec true)"])
def test_a_stdout_that_is_full_closed_or_unread_ends_no_run(stdout):
    command = ["bash", "-c", f'"$0" -c "$1" forgiving {stdout}', sys.executable, PRINT_TWICE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "done\n")


def test_what_a_full_stdout_does_not_take_is_one_sentence():
    command = ["bash", "-c", '"$0" -c "$1" plain > /dev/full', sys.executable, PRINT_TWICE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    sentence = "Error: the output of this command cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, sentence)


def test_a_run_whose_summary_nobody_takes_ends_as_it_did(monkeypatch):
    monkeypatch.setattr(submit, "load_job", lambda *_, **__: None)
    monkeypatch.setattr(submit, "_submit", lambda *_: None)
    monkeypatch.setattr(submit, "finish", lambda *_: echo("a line"))
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        submit.submit_command.callback("job.yaml", None, (), False, None, False, False)


BASE = "prompts: {source: p.txt}\noutput: out\nmodel: {random_weights: true}\n"
MISTAKES = {
    "missing job file": (["none.yaml"], BASE, {}, "none.yaml: there is no such job file"),
    "empty job file": ([], "", {}, "job.yaml: the job file is empty"),
    "unreadable YAML": ([], "a: [1\nb: 2", {}, "job.yaml, line 2: not readable as YAML"),
    "a key twice": ([], BASE + "output: x", {}, "job.yaml, line 4: not readable as YAML: the key 'output' is there twice"),
    "unknown key": ([], BASE + "sampling: {sead: 1}", {}, "unknown key sampling.sead; did you mean sampling.seed?"),
    "wrong type": ([], BASE + "shard_size: many", {}, "shard_size must be a whole number, got the text 'many'"),
    "invalid h/w": ([], BASE + "image: {h_div_w: 9}", {}, "image.h_div_w must be at most 3, got 9"),
    "invalid resolution": ([], BASE + "image: {resolution: 4M}", {}, "image.resolution must be one of 0.06M, 0.25M, 0.60M, 1M"),
    "wrong override": (["--set", "sampling.seed=x"], BASE, {}, "--set: sampling.seed must be a whole number"),
    "missing prompt file": ([], BASE, {}, "p.txt: the prompt file does not exist"),
    "empty prompt file": ([], BASE, {"p__txt": ""}, "p.txt: there are no prompts in it"),
    "unknown column": (["--set", "prompts.source=p.csv"], BASE, {"p__csv": "promt\nx"}, "there is no column 'prompt'"),
    "broken JSONL": (["--set", "prompts.source=p.jsonl"], BASE, {"p__jsonl": "{}\n{"}, "p.jsonl, line 2: broken JSON"),
    "ragged CSV": (["--set", "prompts.source=p.csv"], BASE, {"p__csv": "prompt,n\nx"}, "row 1 has 1 field and the header 2"),
    "foreign Parquet": (["--set", "prompts.source=p.parquet"], BASE, {"p__parquet": "x"}, "p.parquet is not a readable Parquet file"),
    "bad UTF-8": ([], BASE, {"p__txt": b"\xff"}, "p.txt, line 1: not UTF-8 text"),
    "ids twice": (["--set", "prompts.source=p.csv"], BASE, {"p__csv": "id,prompt\n1,x\n1,y"}, "row 2: the id '1' in the column 'id' is already that of"),
    "a reserved column": (["--set", "prompts.source=p.csv"], BASE, {"p__csv": "prompt,width\nx,1"}, "the column 'width' has the name of a column"),
    "no good row": (["--set", "prompts.source=p.csv"], BASE, {"p__csv": 'prompt,n\n"",1'}, "its prompt cannot be used"),
    "unknown preset": (["--set", "model.preset=infinity-2"], BASE, {}, "did you mean 'infinity-2b'?"),
    "impossible width": (["--set", "model.architecture={width: 383, num_heads: 6}"], BASE, {}, "model.architecture.width: 383 is not divisible by num_heads 6"),
    "odd head size": (["--set", "model.architecture={width: 36, num_heads: 6}"], BASE, {}, "the head size 6 (width / num_heads) must be divisible by 4"),
    "guidance per scale": (["--set", "sampling.cfg_scale=[1, 2]"], BASE, {}, "sampling.cfg_scale: the schedule has 10 scales, but 2 values are given"),
    "temperature per scale": (["--set", "sampling.temperature=[1, 2]", "--set", "image.resolution=1M"], BASE, {}, "sampling.temperature: the schedule has 13 scales, but 2"),
    "guidance layer": (["--set", "sampling.cfg_insertion_layer=-99"], BASE, {}, "sampling.cfg_insertion_layer: -99 names no block"),
    "missing model file": (["--set", "model={transformer: t.pth, vae: v.pth, text_encoder: ./t5}"], BASE, {"p__txt": "x"}, "model.transformer: "),
    "missing model URL": (["--set", "model={transformer: 'memory://no.pth', vae: 'memory://no.pth', text_encoder: 'a/b'}"], BASE, {"p__txt": "x"}, "model.transformer: memory://no.pth: there is no such file"),
    "NUL in the output": (["--set", 'output="a\\0b"'], BASE, {"p__txt": "x"}, "--set: output: holds a NUL character"),
    "NUL in the job's output": ([], 'prompts: {source: p.txt}\noutput: "a\\0b"', {"p__txt": "x"}, "job.yaml: output: holds a NUL character"),
    "NUL in the source": (["--set", 'prompts.source="a\\0b"'], BASE, {}, "--set: prompts.source: holds a NUL character"),
    "NUL in a model file": (["--set", 'model.vae="a\\0b"'], BASE, {}, "--set: model: holds a NUL character"),
    "an open quote": (["--set", "prompts.source=p.csv"], BASE, {"p__csv": 'prompt\n"a cat\ntwo\nthree\n'}, "p.csv, line 2: a quotation mark is not closed"),
    "output in memory": (["--output", "memory://here/out"], BASE, {"p__txt": "x"}, "memory://here/out: lives in the memory of one process"),
    "output is a file": (["--output", "p.txt"], BASE, {"p__txt": "x"}, "p.txt"),
    "output cannot be written": (["--output", "/proc/out"], BASE, {"p__txt": "x"}, "/proc/out: /proc cannot be written"),
    "output holds something else": (["--output", "."], BASE, {"p__txt": "x"}, "holds other files (job.yaml, p.txt)"),
    "unknown output protocol": (["--output", "foo://x"], BASE, {"p__txt": "x"}, "foo://x"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_validate_says_every_mistake_in_one_line(run, mistake):
    options, job, files, message = MISTAKES[mistake]
    path, options = (
        (options[0], options[1:]) if options and not options[0].startswith("--") else ("job.yaml", options)
    )
    result = run("validate", path, *options, job=job, **files)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert result.stdout == ""
