"""Every command and snippet of the documentation runs here, or says that it needs more than this machine.

`RUNS` is what runs, in order and in a folder of its own for each list. A command of the documentation that is in none of
them must carry a mark for the reader: that it needs a GPU, a cluster or the network, or takes minutes. All are parsed.
"""

import importlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import warnings

import click
import datasets
import pytest
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file
from torch import zeros

from toprovar_batch.orchestrator.cli import COMMANDS, main

from .documented import PAGES, ROOT, blocks, commands

# Stand behind a documented command, so that it takes seconds: a tiny model with random weights, few prompts, one worker.
TINY = [
    *(
        "--set",
        "model.random_weights=true",
        "--set",
        "model.architecture={depth: 2, width: 64, num_heads: 2}",
    ),
    *("--set", "runtime.device=cpu", "--set", "prompts.limit=1"),
]
ONE = ["--set", "sampling.images_per_prompt=1"]
SMALL = [*TINY, "--set", "image.resolution=0.06M"]
FEW = [*SMALL, "--prompts", "1"]
# Of two layers and seven scales enough can be pruned for the documented goals.
PRUNED = [*FEW, "--set", "policy={name: toprovar, representative_scale: 2, layer_pruning: false}"]
QUICK_BENCH = ["--random-weights", "--resolution", "0.06M", "--batch", "1", "--repeats", "1", "--warmup", "0"]
CHECKED = None
"""A `submit` of a job that another command here submits: `validate`, which refuses what it would refuse."""
EVALUATE = "toprovar-batch evaluate outputs/geneval"

# name: commands as they are documented, and what stands behind them here
RUNS: dict[str, dict[str, list[str] | None]] = {
    "first job": {
        'echo "a red cube left of a blue sphere" > my-prompts.txt': [],
        "toprovar-batch validate my.yaml": [],
        "toprovar-batch submit my.yaml": [],
        "toprovar-batch status OUTPUT": [],
        "toprovar-batch fsck OUTPUT": [],
        "toprovar-batch sheet OUTPUT --file sheet.jpg": [],
        "toprovar-batch validate JOB": [],
        "toprovar-batch submit JOB": [],
        "toprovar-batch submit JOB --retry-errors": [],
    },
    "job file": {
        "toprovar-batch validate job.yaml": [],
        "toprovar-batch submit job.yaml": CHECKED,
        "toprovar-batch submit job.yaml --output /data/out --set sampling.seed=7 --set sampling.images_per_prompt=4": CHECKED,
    },
    "calibration": {
        "toprovar-batch calibrate JOB --file policy.yaml": PRUNED,
        "toprovar-batch calibrate job.yaml --file policy.yaml --fraction 0.4": PRUNED,
        "toprovar-batch calibrate job.yaml --file policy.yaml --ssim-loss 0.05": FEW,
        "toprovar-batch calibrate jobs/geneval.yaml --file policy.yaml --score-loss 1": [*FEW, *ONE],
        "toprovar-batch submit job.yaml --set policy.file=policy.yaml": CHECKED,
    },
    "scores": {
        "toprovar-batch submit jobs/geneval.yaml": [*SMALL, *ONE],
        EVALUATE: [],
        "toprovar-batch submit jobs/geneval.yaml --set policy=toprovar --output outputs/geneval-toprovar": CHECKED,
        f"{EVALUATE}-toprovar --against outputs/geneval --json": [],
        "toprovar-batch evaluate OUTPUT": [],
    },
    "demo": {
        "make demo": [],
        "submit jobs/demo.yaml --set policy=...": CHECKED,
        "submit jobs/demo.yaml --set prompts.limit=2": CHECKED,
    },
    "model": {
        "toprovar-batch verify tests/data/golden/square": [],
        "toprovar-batch bench --device cpu --batch 1,4 --repeats 2 --warmup 1": QUICK_BENCH,
    },
    "records": {
        "python -m toprovar_batch.worker.reference.quality_tables quality.json": [],
        "python -m toprovar_batch.worker.reference.figures pareto quality.json pareto.svg": [],
        "python -m toprovar_batch.worker.reference.geneval_prompts prompts.jsonl": [],
        "python -m toprovar_batch.worker.packed_weights weights": [],
    },
}  # fmt: skip
# What a contributor runs, and this very run is a part of. Make says what it would do.
DRY = {"make check", "make test", "make test-fast", "make format", "python -m pytest", ". .venv/bin/activate"}

DOCUMENTED = [command for page in PAGES for command in commands((ROOT / page).read_text(), page)]
SLOW = {"first job", "calibration", "scores", "demo", "model"}


RAY = {"first job", "scores", "demo"}


def arguments_of(text):
    """The words behind `toprovar-batch`, which some pages leave out; None for another program's command."""
    words = shlex.split(text)
    if words[0] == "toprovar-batch":
        return words[1:]
    return words if words[0] in COMMANDS else None


def is_mention(text):
    """Whether a command is named with an option and without what it is about, as in `status --verify`."""
    words = arguments_of(text)
    if words is None or len(words) == 1 or not all(word.startswith("--") for word in words[1:]):
        return False
    return any(isinstance(each, click.Argument) for each in main.get_command(None, words[0]).params)


def unknown(documented):
    """The commands that neither run here nor say what they need."""
    run = {text for each in RUNS.values() for text in each} | DRY
    return [
        f"{command.place}: {command.text}"
        for command in documented
        if not (command.marked or command.text in run or is_mention(command.text))
    ]


def test_every_command_runs_here_or_says_what_it_needs():
    left = unknown(DOCUMENTED)
    assert not left, "add it to RUNS, or tell the reader what it needs:\n" + "\n".join(left)


@pytest.mark.parametrize(
    ("markdown", "places"),
    [
        ("Text.\n\n```console\n$ toprovar-batch bench \\\n    --profile  # fast\n```\n", ["page:4: toprovar-batch bench --profile"]),
        ("```console\n$ toprovar-batch bench --profile  # needs a GPU\n```\n", []),
        ("This needs a GPU:\n\n```console\n$ Q=some.module\n$ python -m $Q.part --x\n```\n", []),
        ("```console\n$ Q=some.module\n$ python -m $Q.part --x\n```\n", ["page:2: python -m some.module.part --x"]),
        ("Call `toprovar-batch sheet here`,\nor not.", ["page:1: toprovar-batch sheet here"]),
        ("A page.\n\n| `make chaos ARGS=1` | it |\n| `make chaos ARGS=2` | takes two minutes |", ["page:3: make chaos ARGS=1"]),
        ("Every command of this\npage needs a cluster.\n\n- `ray up x.yaml`", []),
        ("`toprovar-batch submit`, `status --verify`, `ray job stop` and `make test` are names.", []),
    ],
)  # fmt: skip
def test_a_new_command_is_found_until_it_says_what_it_needs(markdown, places):
    assert unknown(commands(markdown)) == places


def test_what_runs_is_documented():
    documented = {command.text for command in DOCUMENTED}
    assert {text for each in RUNS.values() for text in each} | DRY <= documented


@pytest.mark.parametrize("text", sorted({command.text for command in DOCUMENTED}))
def test_every_command_has_options_that_exist(text):
    words = shlex.split(text.replace("$(", "").replace(")", ""))
    if (arguments := arguments_of(text)) is not None:
        parse(main.get_command(None, arguments[0]), arguments[1:])
    elif words[0] == "make":
        target, *variables = words[1:]
        assert f"\n{target}:" in (ROOT / "Makefile").read_text()
        chaos = (ROOT / "tests/chaos/__main__.py").read_text()
        assert all(f'"{option}"' in chaos for option in re.findall(r"--[a-z-]+", " ".join(variables)))
    elif "-m" in words and words[words.index("-m") + 1] != "pytest":
        name, *rest = words[words.index("-m") + 1 :]
        module = importlib.import_module(name)
        if name == "toprovar_batch.worker.pruning.bench":
            assert not rest
            return
        parse(command_of(module), rest)
    elif words[0] == "train":
        parse(command_of(importlib.import_module("toprovar_batch.worker.reference.train")), words[1:])


def command_of(module):
    """The command that a module runs as a program."""
    own = [
        each for each in vars(module).values()
        if isinstance(each, click.Command) and each.callback.__module__ == module.__name__
    ]  # fmt: skip
    return next((each for each in own if isinstance(each, click.Group)), own[0])


def parse(command, words):
    """Refuse unknown options and values of the wrong kind; files need not exist."""
    if isinstance(command, click.Group):
        parse(command.commands[words[0]], words[1:])
        return
    context = click.Context(command)
    given, _, _ = command.make_parser(context).parse_args(list(words))
    for parameter in command.params:
        value = given.get(parameter.name)
        unfinished = value is None or isinstance(parameter.type, click.Path) or value in ("...", "URL", "ID")
        if isinstance(parameter, click.Option) and not unfinished:
            parameter.type_cast_value(context, value)


def block_of(page, language, start=""):
    return next(
        text
        for _, found, text, _ in blocks((ROOT / page).read_text())
        if found == language and text.startswith(start)
    )


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A folder with what the documentation tells its reader to have there."""
    monkeypatch.chdir(tmp_path)
    for name in ("jobs", "tests", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "my.yaml").write_text(block_of("README.md", "yaml"))
    (tmp_path / "job.yaml").write_text(block_of("docs/job-file.md", "yaml"))
    (tmp_path / "prompts.jsonl").write_text(
        '{"prompt": "a red sphere on a grey floor", "category": "simple"}\n'
    )
    (tmp_path / "quality.json").write_bytes((ROOT / "docs/benchmarks/quality.json").read_bytes())
    (tmp_path / "weights").mkdir()
    save_file({"a": zeros(64, 64)}, tmp_path / "weights/a.safetensors")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def run_one(text, behind, workspace):
    """Run a documented command as its reader would, with the names of its placeholders filled in."""
    outputs = [*sorted(workspace.glob("outputs/*")), workspace / "job"]
    jobs = {"my-images": "my.yaml"}
    filled = {
        "OUTPUT": str(outputs[0]),
        "JOB": jobs.get(outputs[0].name, "job.yaml"),
        "/data/out": "out",
        "...": "detail",
    }
    for placeholder, value in filled.items():
        text = text.replace(placeholder, value)
    if behind is CHECKED:
        if "--output outputs/" in text:  # a later command compares what is there; the same pictures do
            shutil.copytree(outputs[0], workspace / shlex.split(text)[-1])
        text, behind = text.replace("submit ", "validate ", 1), ["--output", "another"]
    if text.startswith("make "):
        done = subprocess.run(
            [*shlex.split(text), "-n"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        for line in done.stdout.splitlines():
            if "toprovar-batch " in line:
                run_one(line[line.index("toprovar-batch ") :], TINY if " submit " in line else [], workspace)
        return
    arguments = arguments_of(text)
    if arguments is not None:
        result = CliRunner().invoke(main, [*arguments, *behind])
        assert result.exit_code == 0, (text, result.output)
    elif text.startswith("python -m "):
        with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
            warnings.simplefilter("ignore", RuntimeWarning)  # the module may be imported already
            patch.setattr(sys, "argv", shlex.split(text)[2:])
            with pytest.raises(SystemExit) as end:
                runpy.run_module(sys.argv[0], run_name="__main__")
        assert not end.value.code, text
    else:
        subprocess.run(text, shell=True, check=True)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in RUNS]
)
def test_documented_commands_run(name, workspace, request):
    if name in RAY:
        request.getfixturevalue("ray_cluster")
    for text, behind in RUNS[name].items():
        run_one(text, behind, workspace)
    if name == "first job":
        namespace = {}
        exec(block_of("README.md", "python"), namespace)
        with Image.open("first.png") as image, Image.open("sheet.jpg"):
            assert image.size == (512, 512)


@pytest.mark.parametrize("text", sorted(DRY - {"python -m pytest", ". .venv/bin/activate"}))
def test_make_knows_what_a_contributor_runs(text):
    done = subprocess.run([*shlex.split(text), "-n"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ".venv/bin/" in done.stdout  # which `. .venv/bin/activate` puts on the path
