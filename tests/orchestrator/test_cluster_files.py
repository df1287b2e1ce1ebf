"""The files of jobs/cluster, checked as far as a machine without a cluster can."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start
from ray.scripts.symmetric_run import curate_and_validate_ray_start_args

from toprovar_batch import __version__
from toprovar_batch.orchestrator.job.load import load_job

ROOT = Path(__file__).parents[2]
FILES = ROOT / "jobs/cluster"
RAY = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]


def read(name):
    return yaml.safe_load((FILES / name).read_text())


def check_submit(command):
    """A command line that starts a job names a job file of the project and overrides that it takes."""
    words = shlex.split(command)
    words = words[words.index("submit") + 1 :]
    job = words[0].removeprefix("/opt/toprovar-batch/")
    overrides = [words[index + 1] for index, word in enumerate(words) if word == "--set"]
    return load_job(str(ROOT / job), overrides)


def test_every_file_is_listed_and_explained():
    listed = (FILES / "README.md").read_text()
    explained = (ROOT / "docs/cluster.md").read_text()
    for path in FILES.iterdir():
        if path.suffix not in {".md", ".dockerignore"}:
            assert f"`{path.name}`" in listed
            assert f"jobs/cluster/{path.name}" in explained


@pytest.mark.parametrize("name", ["rayjob.yaml", "rayjob-kueue.yaml"])
def test_a_rayjob_has_the_fields_that_its_operator_requires(name):
    job = read(name)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", job["metadata"]["name"])
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    assert cluster["rayVersion"] == RAY
    assert isinstance(yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"], dict)
    head, [workers] = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    for group in (head, workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        [container] = pod["containers"]
        assert container["image"].endswith(f":{__version__}")
        assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
        volumes = {volume["name"] for volume in pod.get("volumes", ())}
        assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes
    planned = check_submit(spec["entrypoint"])
    assert (planned.runtime.device, planned.runtime.num_workers) == ("cuda", workers["maxReplicas"])


def test_the_job_of_a_queue_is_one_that_kueue_admits():
    job = read("rayjob-kueue.yaml")
    assert job["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "my-queue"}
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    assert "clusterSelector" not in job["spec"]
    cluster = job["spec"]["rayClusterSpec"]
    assert "enableInTreeAutoscaling" not in cluster
    assert len(cluster["workerGroupSpecs"]) <= 7
    assert len({workers["replicas"] for workers in cluster["workerGroupSpecs"]}) == 1


def test_ray_takes_its_cluster_file():
    config = read("ray-up-l40s.yaml")
    validate_config(prepare_config(config))
    assert config["head_node_type"] in config["available_node_types"]
    assert config["docker"]["image"].endswith(f":{__version__}")


def directives(text):
    found = re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", text, re.MULTILINE)
    assert len(found) == text.count("\n#SBATCH")
    return dict(found)


RUN_COMMAND = 'while [ "$1" != -- ]; do shift; done; shift; "$@"'


def run_sbatch(tmp_path, driver, *arguments, start=RUN_COMMAND):
    """Run the script with doubles of Slurm's commands, of Ray's and of ours; gives its end and what they were called with."""
    doubles = {
        "scontrol": 'echo "scontrol $@" >> "$CALLS"; [ "$1" = show ] && printf "node1\\nnode2\\n"; true',
        "srun": 'while [ "$1" != ray ]; do shift; done; exec "$@"',
        "ray": f'echo "ray $@" >> "$CALLS"; echo "token $RAY_AUTH_MODE $RAY_AUTH_TOKEN" >> "$CALLS"; {start}',
        "toprovar-batch": f'printf "%s\\n" "$*" >> "$CALLS"; {driver}',
    }
    for name, body in doubles.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    calls = tmp_path / "calls"
    variables = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "CALLS": str(calls),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NNODES": "2",
        "SLURM_CPUS_PER_TASK": "8",
    }
    script = ["bash", str(FILES / "slurm.sbatch"), *arguments]
    with subprocess.Popen(script, env=variables, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("ready"):
                process.terminate()
    return process.returncode, calls.read_text()


def test_slurm_gives_each_node_a_task_and_the_shell_a_signal_before_the_limit():
    wanted = directives((FILES / "slurm.sbatch").read_text())
    assert wanted["ntasks-per-node"] == "1"
    assert re.fullmatch(r"B:TERM@\d+", wanted["signal"])
    assert {
        "exclusive",
        "requeue",
        "no-kill",
        "nodes",
        "gpus-per-node",
        "cpus-per-task",
        "time",
    } <= wanted.keys()


def test_a_run_under_slurm_passes_its_arguments_and_its_exit_code_on(tmp_path):
    code, calls = run_sbatch(tmp_path, "exit 2", "my job.yaml", "--set", "name=a b")
    assert code == 2
    port = 20000 + os.getpid() % 1000 * 10
    assert f"my job.yaml --set name=a b --address node1:{port}" in calls
    assert "requeue" not in calls
    assert not Path(f"/tmp/tpv-{os.getpid()}").exists()


def test_ray_of_each_slurm_job_has_a_token_of_its_own(tmp_path):
    driver = 'echo "token $RAY_AUTH_MODE $RAY_AUTH_TOKEN" >> "$CALLS"'
    tokens = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        _, calls = run_sbatch(tmp_path / name, driver, "job.yaml")
        of_ray, of_driver = re.findall(r"^token token ([0-9a-f]{64})$", calls, re.MULTILINE)
        assert of_ray == of_driver
        tokens.append(of_ray)
    assert len(set(tokens)) == 2


def test_a_ray_that_does_not_start_under_slurm_is_no_success(tmp_path):
    assert run_sbatch(tmp_path, "exit 0", "job.yaml", start="exit 0")[0] == 1


def test_near_the_limit_the_driver_gets_the_signal_and_the_job_is_queued_again(tmp_path):
    driver = 'trap "exit 143" TERM; echo ready; while true; do read -t 0.1 <> <(:); done'
    code, calls = run_sbatch(tmp_path, driver, "job.yaml")
    assert code == 143
    assert f"scontrol requeue {os.getpid()}" in calls


def test_ray_takes_the_options_of_the_slurm_script(tmp_path):
    _, calls = run_sbatch(tmp_path, "exit 0", "job.yaml")
    [line] = [line for line in calls.splitlines() if line.startswith("ray ")]
    words = line.split()
    assert words[1] == "symmetric-run"
    options = curate_and_validate_ray_start_args(words[2 : words.index("--")])
    start.make_context("start", ["--head", *options])
    start.make_context("start", ["--address", "node1:20000", *options])


def test_skypilot_gets_fields_that_it_knows():
    task = read("skypilot.yaml")
    assert task.keys() <= {"name", "workdir", "resources", "envs", "setup", "run", "num_nodes", "file_mounts"}
    assert task["resources"].keys() <= {"accelerators", "cpus", "memory", "use_spot", "disk_size", "infra"}
    assert re.fullmatch(r"[A-Z0-9]+:\d+", task["resources"]["accelerators"])
    for script in (task["setup"], task["run"]):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert check_submit(task["run"]).runtime.device == "cuda"


def test_the_image_has_the_tested_ray_and_all_that_the_package_is_made_of():
    lines = (FILES / "Dockerfile").read_text().splitlines()
    assert f"FROM rayproject/ray:{RAY}-py311-gpu" in lines
    copied = set()
    for line in lines:
        if line.startswith("COPY "):
            *sources, _ = line.split()[2:]
            copied |= set(sources)
    assert all((ROOT / name).exists() for name in copied)
    # The package's folders are links from src, and setuptools reads the readme and the licence.
    linked = {path.resolve().name for path in (ROOT / "src/toprovar_batch").iterdir() if path.is_symlink()}
    assert linked | {"src", "pyproject.toml", "constraints.txt", "README.md", "LICENSE", "jobs"} <= copied
