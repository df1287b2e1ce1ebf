import functools
import json
import signal
import tempfile
from collections import Counter

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from fsspec.implementations.local import LocalFileSystem

from toprovar_batch.orchestrator.cli import main
from toprovar_batch.orchestrator.commands.submit import finish, show
from toprovar_batch.orchestrator.job.load import load_job
from toprovar_batch.orchestrator.output.folder import OutputFolder, open_output
from toprovar_batch.orchestrator.prompts.sample_plan import plan_job
from toprovar_batch.orchestrator.run.submission import submit
from toprovar_batch.worker.errors import CheckpointError, JobSpecError, RunFailedError
from toprovar_batch.worker.part_file import PartWriter, dataset_schema, read_stats
from toprovar_batch.worker.pruning.pruning_map import read_pruning_map
from toprovar_batch.worker.shard_events import ShardTask


def read_rows(folder):
    return pa.concat_tables(pq.read_table(part) for part in sorted((folder / "data").iterdir())).to_pylist()


def generated(folder):
    """How often each sample reached the engine."""
    return Counter((folder / "generated.log").read_text().split())


@pytest.fixture
def run_cli(ray_cluster):
    def run(*arguments):
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return run


def test_prompts_in_images_out_with_the_real_engine(write_job, tmp_path, run_cli):
    prompts = ["a cat", "猫 \U0001f408 e\u0301", "word " * 200_000, "", 7]
    source = tmp_path / "prompts.jsonl"
    source.write_text("".join(json.dumps({"prompt": prompt, "mood": "calm"}) + "\n" for prompt in prompts))
    job = write_job(shard_size=3, num_workers=1)
    result = run_cli("submit", job, "--set", f"prompts.source={source}", "--set", "image.format=jpeg")
    assert result.exit_code == 0, result.output
    assert "3 images, 2 failed, of 5 samples; 2 of 2 shards" in result.output
    rows = {str(row["prompt"])[:3]: row for row in read_rows(tmp_path / "out")}
    assert sorted(rows) == sorted(["a c", "猫 \U0001f408", "wor", "", "Non"])
    assert rows["a c"]["image"]["bytes"][:3] == b"\xff\xd8\xff"
    assert (rows["a c"]["width"], rows["a c"]["height"], rows["a c"]["mood"]) == (256, 256, "calm")
    assert [rows[start]["prompt_truncated"] for start in ("a c", "wor")] == [False, True]
    assert [rows[start]["status"] for start in ("", "Non")] == ["error", "error"]
    assert rows["wor"]["sample_ms"] > 0
    cut = "1 sample has a prompt longer than the text encoder takes, and only the beginning was read; see column prompt_truncated"
    assert result.output.splitlines().count(cut) == 1
    assert run_cli("status", tmp_path / "out").output.splitlines().count(cut) == 1
    [computed] = footers(tmp_path / "out")[0]["computed_with"]
    assert {name: computed[name] for name in ("dtype", "device_type", "backend", "threads")} == {
        "dtype": "float32",
        "device_type": "cpu",
        "backend": "torch",
        "threads": 1,
    }
    assert f"computed in float32 on {computed['device']} with 1 thread by torch" in result.output


@pytest.mark.slow
def test_a_pruned_job_tells_what_it_saved(write_job, tmp_path, run_cli):
    job = write_job(["a cat", "two red cubes"], shard_size=1)
    pruning = (
        "policy=toprovar",
        "policy.representative_scale=2",
        "policy.depth_threshold=1",
        "policy.token_pruning=false",
        "policy.beta=1000000",
    )
    settings = [
        part
        for key in (*pruning, "policy.layer_threshold=0", "policy.pruning_map=true")
        for part in ("--set", key)
    ]
    result = run_cli("submit", job, *settings)
    assert result.exit_code == 0, result.output
    assert "token-layers saved by the policy: 96.0%" in result.output
    assert "pruning starts at scale 3 in 2 images" in result.output
    rows = {row["prompt"]: row for row in read_rows(tmp_path / "out")}
    for prompt in ("a cat", "two red cubes"):
        row = rows[prompt]
        assert (row["policy"], row["pruning_start_scale"], row["keep_ratio"]) == (
            "toprovar",
            3,
            [1.0] * 3 + [0.0] * 4,
        )
        assert row["token_layer_fraction"] == 21 / 521
        assert row["layer_representation_score"] == pytest.approx([0.0, 0.0], abs=1e-6)
        assert [ratio is None for ratio in row["low_entropy_ratio"]] == [True, True, False] + [True] * 4
        scales = read_pruning_map(row["pruning_map"], row["h_div_w"], len(row["keep_ratio"]))
        assert [int(scale.max()) for scale in scales] == [2, 2, 2, 0, 0, 0, 0]
    (record,) = (json.loads(path.read_text()) for path in (tmp_path / "out/_job/runs").glob("*.json"))
    assert record["totals"]["pruning_start_scales"] == {"3": 2}
    status = run_cli("status", tmp_path / "out")
    assert "pruning starts at scale 3 in 2 images" in status.output
    files, cache = str(tmp_path / "out/data/*.parquet"), str(tmp_path / "cache")
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
    assert loaded.features["pruning_map"].dtype == "binary"
    other = run_cli("submit", job, *settings, "--set", "policy.beta=3")
    assert other.exit_code == 2
    assert "policy.beta" in other.output


def test_a_second_run_generates_nothing(write_job, tmp_path, make_engine_factory):
    factory = make_engine_factory()
    first = submit(write_job(), engine_factory=factory)
    before = generated(tmp_path)
    second = submit(write_job(), engine_factory=factory)
    assert generated(tmp_path) == before
    assert set(before.values()) == {1}
    assert (first.this_run.generated, second.this_run.generated) == (8, 0)
    assert (second.dataset.ok, second.is_complete) == (8, True)
    idle = "this run: nothing was left to do"
    assert [idle in summary.lines("again") for summary in (first, second)] == [False, True]
    assert len(list((tmp_path / "out/_job/runs").glob("*.json"))) == 1


def test_only_missing_shards_are_generated(write_job, tmp_path, make_engine_factory):
    factory = make_engine_factory()
    submit(write_job(), engine_factory=factory)
    lost = tmp_path / "out/data/part-00001-of-00002.parquet"
    lost_ids = pq.read_table(lost)["sample_id"].to_pylist()
    lost.unlink()
    submit(write_job(), engine_factory=factory)
    assert {sample_id for sample_id, count in generated(tmp_path).items() if count == 2} == set(lost_ids)


def test_workers_that_a_new_dataset_leaves_idle_are_told(write_job, make_engine_factory, capsys):
    path = write_job(["a", "b"], shard_size=4)
    submit(path, engine_factory=make_engine_factory())
    said = "Warning: 1 shard for 2 workers: 1 idle; a new dataset with shard_size: 1 occupies 2"
    assert capsys.readouterr().err.count(said) == 1


def test_retry_errors_generates_only_the_failed_rows_again(write_job, tmp_path, make_engine_factory):
    path = write_job(["a", "refuse", "b", "c", "d", "e", "f", "g"])
    submit(path, engine_factory=make_engine_factory())
    good = {row["sample_id"]: row for row in read_rows(tmp_path / "out") if row["status"] == "ok"}
    summary = submit(path, engine_factory=make_engine_factory(refusing=False), retry_errors=True)
    rows = read_rows(tmp_path / "out")
    assert (summary.dataset.ok, summary.dataset.errors, summary.this_run.generated) == (8, 0, 1)
    assert {row["sample_id"]: row for row in rows if row["sample_id"] in good} == good
    assert (len(good), len(rows)) == (7, 8)
    assert sorted(generated(tmp_path).values()) == [1] * 7 + [2]


@pytest.mark.parametrize(("prompt", "advised"), [("refuse", True), ("", False)])
def test_another_try_is_advised_where_it_may_help(
    write_job, tmp_path, make_engine_factory, capsys, prompt, advised
):
    source = tmp_path / "prompts.jsonl"
    job = write_job()
    source.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("a", prompt)))
    settings = [f"prompts.source={source}", "sampling.images_per_prompt=2"]
    summary = submit(job, engine_factory=make_engine_factory(), overrides=settings)
    assert (summary.dataset.ok, summary.dataset.errors, summary.this_run.generated) == (2, 2, 2)
    finish(summary, "again")
    said = capsys.readouterr().out
    assert ("try the failed samples again with: again --retry-errors" in said) is advised
    assert ("no try mends the failed samples, as their prompts cannot be used" in said) is not advised
    assert "this run: 2 images in" in said


def test_failed_samples_of_which_some_can_never_work_are_told_apart(
    write_job, tmp_path, make_engine_factory, capsys
):
    source = tmp_path / "prompts.jsonl"
    job = write_job()
    source.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("a", "refuse", "", "")))
    finish(submit(job, engine_factory=make_engine_factory(), overrides=[f"prompts.source={source}"]), "again")
    said = capsys.readouterr().out
    assert "try the failed samples again with: again --retry-errors\nno try mends 2 of them, as their" in said


def test_the_run_is_on_record(write_job, tmp_path, make_engine_factory):
    submit(write_job(["a", "refuse", "lock", "raise"]), engine_factory=make_engine_factory())
    (record,) = (json.loads(path.read_text()) for path in (tmp_path / "out/_job/runs").glob("*.json"))
    assert record["totals"]["rows"] == 4
    assert record["totals"]["errors"] == 3
    assert set(record["totals"]["error_kinds"]) == {
        "refused",
        "ValueError: no such colour",
        "HoldsALockError: many lines",
    }
    assert [incident["kind"] for incident in record["incidents"]] == [
        "exception"
    ] * 4  # twice whole, then one by one
    assert all(engine["device"] == "fake" for engine in record["engines"].values())
    assert record["images_per_second"] > 0
    hashes = {engine["hash"] for engine in record["engines"].values()}
    assert hashes == {footer["engine"] for footer in footers(tmp_path / "out")}
    assert len(hashes) == 1  # equal engines, whatever loading took


def test_an_output_that_refuses_a_part_ends_the_run_and_keeps_what_is_published(
    write_job, tmp_path, make_engine_factory, monkeypatch
):
    impatient = functools.partial(ShardTask, publish_delays_s=(0, 0))
    monkeypatch.setattr("toprovar_batch.orchestrator.run.production.ShardTask", impatient)
    factory = make_engine_factory(in_the_way=tmp_path / "out/data/part-00001-of-00004.parquet")
    job = write_job([f"prompt {index}" for index in range(16)], num_workers=1)
    with pytest.raises(RunFailedError, match="the output does not take a part: IsADirectoryError"):
        submit(job, engine_factory=factory)
    record = the_record(tmp_path)
    assert (record["ended"], record["totals"]["ok"]) == ("failed", sum(generated(tmp_path).values()) - 4)
    assert 1 not in record["shards"]  # and those that had begun behind it are published
    (tmp_path / "out/data/part-00001-of-00004.parquet").rmdir()
    summary = submit(job, engine_factory=make_engine_factory())
    assert (summary.dataset.ok, summary.is_complete) == (16, True)
    assert summary.this_run.generated == 16 - record["totals"]["ok"]


def test_a_retry_of_errors_that_gives_a_shard_up_fails_the_run(
    write_job, tmp_path, make_engine_factory, capsys
):
    job = write_job(["a", "refuse", "b", "c"], max_shard_attempts=1)
    submit(job, engine_factory=make_engine_factory())
    log = tmp_path / "generated.log"
    log.unlink()
    log.mkdir()  # the engine cannot note what it does, and raises
    summary = submit(job, engine_factory=make_engine_factory(), retry_errors=True)
    assert (summary.finished_shards, summary.num_shards, list(summary.failed)) == (1, 1, [0])
    with pytest.raises(RunFailedError, match="1 shard was given up"):
        finish(summary, "again")
    assert "go on with: again --retry-errors" in capsys.readouterr().out


def test_a_part_that_is_not_where_its_worker_put_it_fails_the_run(
    write_job, tmp_path, make_engine_factory, monkeypatch
):
    monkeypatch.setattr("toprovar_batch.orchestrator.output.parts._LISTING_LAG_S", 0)
    whole = OutputFolder.finished
    monkeypatch.setattr(OutputFolder, "finished", lambda *given: [i for i in whole(*given) if i != 1])
    summary = submit(write_job(), engine_factory=make_engine_factory())
    assert summary.failed == {1: "its worker published a part that is not in the output folder"}
    assert (summary.finished_shards, summary.dataset.ok, summary.is_complete) == (1, 4, False)
    (record,) = (json.loads(path.read_text()) for path in (tmp_path / "out/_job/runs").glob("*.json"))
    assert (record["shards"], list(record["failed_shards"])) == ([0], ["1"])


def test_a_part_that_cannot_be_read_now_is_neither_made_again_nor_called_damaged(
    write_job, tmp_path, make_engine_factory, monkeypatch, capsys
):
    submit(write_job(), engine_factory=make_engine_factory())
    before = generated(tmp_path)
    (tmp_path / "out/data/part-00000-of-00002.parquet").unlink()
    whole = LocalFileSystem.open

    def open_file(filesystem, path, *rest, **more):
        if str(path).endswith("part-00001-of-00002.parquet"):
            raise TimeoutError("no answer")
        return whole(filesystem, path, *rest, **more)

    monkeypatch.setattr(LocalFileSystem, "open", open_file)
    summary = submit(write_job(), engine_factory=make_engine_factory())
    assert sum(generated(tmp_path).values()) == sum(before.values()) + 4
    assert (summary.unreachable, summary.damaged) == ({1: "no answer"}, {})
    with pytest.raises(RunFailedError, match="1 part cannot be read now"):
        finish(summary, "again")
    said = capsys.readouterr().out
    unread = tmp_path / "out/data/part-00001-of-00002.parquet"
    assert f"{unread} cannot be read now: no answer" in said
    assert "delete" not in said
    status = CliRunner().invoke(main, ["status", str(tmp_path / "out")])
    assert status.exit_code == 1
    assert (
        f"1 part cannot be read now; try again later: {unread} cannot be read now: no answer" in status.stderr
    )
    assert "delete" not in status.output


def test_a_part_with_a_corrupt_picture_is_left_alone_and_named_when_errors_are_tried_again(
    write_job, tmp_path, make_engine_factory, capsys
):
    path = write_job(["refuse", *(f"prompt {index}" for index in range(6)), "refuse"])
    submit(path, engine_factory=make_engine_factory())
    part = tmp_path / "out/data/part-00000-of-00002.parquet"
    picture = pq.read_table(part)["image"].to_pylist()[1]["bytes"]
    spoiled = part.read_bytes().replace(picture, picture[:-1] + b"X", 1)
    part.write_bytes(spoiled)
    summary = submit(path, engine_factory=make_engine_factory(refusing=False), retry_errors=True)
    assert part.read_bytes() == spoiled
    assert list(summary.damaged) == [0]
    assert not summary.is_complete
    assert (summary.this_run.generated, summary.dataset.errors) == (1, 0)
    with pytest.raises(RunFailedError, match="1 part is damaged"):
        finish(summary, "again")
    said = capsys.readouterr()
    assert f"{part} is damaged: " in said.out
    assert f"shard 0 is left alone, as {part} is damaged: " in said.err
    assert f"toprovar-batch fsck {tmp_path / 'out'} --repair moves what is damaged aside" in said.out
    records = [json.loads(path.read_text()) for path in (tmp_path / "out/_job/runs").glob("*.json")]
    assert [list(record["damaged_shards"]) for record in records if record["totals"]["generated"] == 1] == [
        ["0"]
    ]


def test_batches_of_one_colour_are_said_once_and_are_on_record(
    write_job, tmp_path, make_engine_factory, capsys
):
    summary = submit(write_job(num_workers=1), engine_factory=make_engine_factory(flat_batches=2))
    show(summary, "again")
    assert capsys.readouterr().out.count("2 batches hold pictures of one colour alone") == 1
    assert the_record(tmp_path)["flat_batches"] == 2


def test_a_record_that_cannot_be_written_fails_the_run_in_one_sentence(
    write_job, tmp_path, make_engine_factory
):
    (tmp_path / "out/_job").mkdir(parents=True)
    (tmp_path / "out/_job/runs").touch()  # a file where the records' folder should be
    with pytest.raises(RunFailedError, match="the run's record cannot be written: "):
        submit(write_job(), engine_factory=make_engine_factory())


def test_a_broken_checkpoint_is_the_users_one_sentence(write_job, make_engine_factory):
    with pytest.raises(CheckpointError, match=r"^weights.pth: truncated$"):
        submit(write_job(), engine_factory=make_engine_factory(broken="checkpoint"))


def test_a_worker_that_dies_loading_ends_the_run(write_job, make_engine_factory):
    job = write_job(max_load_failures=2, num_workers=1)
    with pytest.raises(RunFailedError, match="2 workers in a row could not load: its process died"):
        submit(job, engine_factory=make_engine_factory(broken="exit"))


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        ("gpu", "workers in a row made no image: RuntimeError: CUDA error 700 of process "),
        ("memory", "workers in a row made no image: RuntimeError: none of 4 samples could be made: refused"),
    ],
)
def test_a_broken_environment_costs_no_sample_and_ends_the_run(
    write_job, tmp_path, make_engine_factory, broken, sentence
):
    job = write_job([f"prompt {index}" for index in range(16)])
    with pytest.raises(RunFailedError, match=sentence):
        submit(job, engine_factory=make_engine_factory(broken=broken))
    assert list((tmp_path / "out/data").glob("*")) == []
    assert sentence in the_record(tmp_path)["failure"]["message"]
    # Of each of four workers: its shard, and the one that it had begun behind it.
    assert sum(generated(tmp_path).values()) <= 4 * (4 + 4)
    summary = submit(job, engine_factory=make_engine_factory())
    assert (summary.dataset.ok, summary.is_complete) == (16, True)


def test_a_dataset_with_nothing_but_errors_fails_the_run(write_job, tmp_path, make_engine_factory):
    summary = submit(write_job(["refuse"]), engine_factory=make_engine_factory())
    assert the_record(tmp_path)["ended"] == "incomplete"
    with pytest.raises(RunFailedError, match="none of 1 sample has an image"):
        finish(summary, "again")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_dispatch_is_a_stop_like_any_other(
    write_job, tmp_path, run_cli, monkeypatch, number, code
):
    module = "toprovar_batch.orchestrator.run.production"
    monkeypatch.setattr(f"{module}.uses_gpus", lambda _job: signal.raise_signal(number))
    result = run_cli("submit", write_job())
    assert (result.exit_code, result.stderr) == (code, "")
    assert f"stopped by {number.name}; what is finished stays" in result.stdout
    record = the_record(tmp_path)
    assert (record["ended"], record["stopped_by"], record["failure"]) == ("stopped", number.name, None)


def the_record(tmp_path):
    (path,) = (tmp_path / "out/_job/runs").glob("*.json")
    return json.loads(path.read_text())


def test_a_users_mistake_found_by_a_worker_is_on_record(write_job, tmp_path, make_engine_factory):
    with pytest.raises(CheckpointError):
        submit(write_job(num_workers=1), engine_factory=make_engine_factory(broken="checkpoint"))
    record = the_record(tmp_path)
    assert record["ended"] == "failed"
    assert record["failure"] == {"type": "CheckpointError", "message": "weights.pth: truncated"}
    assert [(incident["kind"], incident["reason"]) for incident in record["incidents"]] == [
        ("load", "CheckpointError: weights.pth: truncated")
    ]


def test_a_run_that_ends_early_is_on_record_and_summed_up(write_job, tmp_path, make_engine_factory, capsys):
    factory = make_engine_factory(broken="exit")
    job = write_job(max_load_failures=2, num_workers=1)
    with pytest.raises(RunFailedError, match="2 workers in a row could not load"):
        submit(job, engine_factory=factory, on_failure=functools.partial(show, go_on="again"))
    record = the_record(tmp_path)
    assert (record["ended"], record["failure"]["type"]) == ("failed", "RunFailedError")
    assert [incident["kind"] for incident in record["incidents"]] == ["load", "load"]
    said = capsys.readouterr().out
    assert "0 images, 0 failed, of 8 samples; 0 of 2 shards" in said
    assert "2 workers that could not load" in said
    assert "go on with: again" in said
    status = CliRunner().invoke(main, ["status", str(tmp_path / "out")])
    assert "ended by 2 workers in a row could not load: its process died" in status.stdout


def test_a_mistake_before_the_first_worker_is_on_record_where_something_was_made_before(
    write_job, tmp_path, run_cli, make_engine_factory
):
    submit(write_job(), engine_factory=make_engine_factory())
    (tmp_path / "out/data/part-00000-of-00002.parquet").unlink()
    [before] = (tmp_path / "out/_job/runs").glob("*.json")
    result = run_cli("submit", write_job(device="cuda"))
    assert (result.exit_code, result.stderr.count("Error: ")) == (2, 1)
    assert "1 of 2 shards" in result.stdout
    before.unlink()
    assert the_record(tmp_path)["failure"]["type"] == "JobSpecError"


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("is_there", [False, True])
def test_a_run_that_is_refused_before_its_first_worker_leaves_nothing(write_job, tmp_path, run_cli, is_there):
    output = tmp_path / "not/yet/there"
    if is_there:
        output.mkdir(parents=True)
    job = write_job(device="cuda", output=output)
    before = everything(tmp_path)
    result = run_cli("submit", job)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1].startswith("Error: runtime.device: cuda is asked for")
    assert everything(tmp_path) == before


def test_a_ray_that_cannot_start_leaves_no_output(write_job, tmp_path, monkeypatch):
    def init(**_settings):
        raise OSError("no room")

    for name, stand_in in (("is_initialized", lambda: False), ("shutdown", lambda: None), ("init", init)):
        monkeypatch.setattr(f"toprovar_batch.orchestrator.run.ray_session.ray.{name}", stand_in)
    job = write_job()
    before = everything(tmp_path)
    with pytest.raises(JobSpecError, match="Ray cannot start on this machine: no room"):
        submit(job)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("begun", [False, True])
def test_a_cluster_that_is_not_there_is_asked_for_before_an_output_is_begun(
    write_job, tmp_path, monkeypatch, make_engine_factory, begun
):
    if begun:  # nothing is to do, so nobody is asked
        submit(write_job(), engine_factory=make_engine_factory())
    asked = []

    def wait_for_ray(address):
        asked.append((address, (tmp_path / "out").exists()))
        raise ConnectionError("refused")

    module = "toprovar_batch.orchestrator.run.ray_session"
    monkeypatch.setattr(f"{module}.wait_for_ray", wait_for_ray)
    monkeypatch.setattr(f"{module}.ray.is_initialized", lambda: False)
    monkeypatch.setattr(f"{module}.ray.shutdown", lambda: None)
    result = CliRunner().invoke(main, ["submit", write_job(), "--address", "head:6379"])
    if begun:
        assert (result.exit_code, asked) == (0, [])
        return
    sentence = "Error: runtime.ray_address: no Ray cluster answers at head:6379: refused\n"
    assert (result.exit_code, result.stderr) == (2, sentence)
    assert asked == [("head:6379", False)]
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_listed_at_the_end_leaves_a_record(
    write_job, tmp_path, make_engine_factory, monkeypatch
):
    whole = OutputFolder.finished
    looks = []

    def finished(*given):
        looks.append(given)
        if len(looks) > 1:
            raise OSError("no answer")
        return whole(*given)

    monkeypatch.setattr(OutputFolder, "finished", finished)
    with pytest.raises(RunFailedError, match="the finished parts cannot be listed: no answer"):
        submit(write_job(["a", "hiccup-once x"]), engine_factory=make_engine_factory())
    record = the_record(tmp_path)
    assert (record["ended"], record["shards"]) == ("failed", [0])
    assert [incident["kind"] for incident in record["incidents"]] == ["exception"]


def test_a_record_that_cannot_be_written_does_not_hide_what_ended_the_run(
    write_job, tmp_path, make_engine_factory, monkeypatch, capsys
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "system"))
    (tmp_path / "system").mkdir()
    (tmp_path / "out/_job").mkdir(parents=True)
    (tmp_path / "out/_job/runs").touch()  # a file where the records' folder should be
    with pytest.raises(CheckpointError, match=r"^weights.pth: truncated$"):
        submit(write_job(), engine_factory=make_engine_factory(broken="checkpoint"))
    (kept,) = (tmp_path / "system").iterdir()
    assert f"Warning: {tmp_path}/out: the run's record cannot be written: " in capsys.readouterr().err
    assert json.loads(kept.read_text())["failure"]["type"] == "CheckpointError"


@pytest.mark.parametrize(("prompts", "ended"), [(["a"], "complete"), (["hiccup-once x"], "incomplete")])
def test_a_run_that_comes_to_its_end_says_how(write_job, tmp_path, make_engine_factory, prompts, ended):
    submit(write_job(prompts, max_shard_attempts=1), engine_factory=make_engine_factory())
    record = the_record(tmp_path)
    assert (record["ended"], record["failure"]) == (ended, None)


COMPUTED = {"dtype": "float32", "device_type": "cpu", "device": "x86_64", "backend": "torch", "threads": None}


def footers(folder):
    return [read_stats(pq.read_metadata(path)) for path in sorted((folder / "data").iterdir())]


def test_every_part_says_what_it_was_computed_with(write_job, tmp_path, make_engine_factory, capsys):
    job = write_job(["a", "refuse", "b", "c", "d"])
    submit(job, engine_factory=make_engine_factory(description=COMPUTED))
    assert [footer["computed_with"] for footer in footers(tmp_path / "out")] == [
        [COMPUTED | {"images": 3}],
        [COMPUTED | {"images": 1}],
    ]
    other = COMPUTED | {"dtype": "bfloat16"}
    factory = make_engine_factory(refusing=False, description=other)
    summary = submit(job, engine_factory=factory, retry_errors=True)
    assert footers(tmp_path / "out")[0]["computed_with"] == [COMPUTED | {"images": 3}, other | {"images": 1}]
    assert "dtype bfloat16 instead of float32;" in capsys.readouterr().err
    mixed = "computed in float32 on x86_64 by torch (4 images), bfloat16 on x86_64 by torch (1 image)"
    assert mixed in list(summary.lines("again"))
    assert mixed in CliRunner().invoke(main, ["status", str(tmp_path / "out")]).stdout


def test_a_continuation_on_other_hardware_is_warned_of_once(write_job, tmp_path, make_engine_factory, capsys):
    job = write_job([f"prompt {index}" for index in range(16)])
    submit(job, engine_factory=make_engine_factory(description=COMPUTED))
    for shard in (0, 1):
        (tmp_path / f"out/data/part-0000{shard}-of-00004.parquet").unlink()
    capsys.readouterr()
    submit(job, engine_factory=make_engine_factory(description=COMPUTED | {"device": "aarch64"}))
    said = capsys.readouterr().err
    assert said.count("differs from other parts of this dataset: device aarch64 instead of x86_64;") == 1


def test_parts_of_earlier_versions_continue(write_job, tmp_path, make_engine_factory, capsys):
    job = write_job()
    submit(job, engine_factory=make_engine_factory(description=COMPUTED))
    for path in (tmp_path / "out/data").iterdir():
        table, stats = pq.read_table(path), read_stats(pq.read_metadata(path))
        del stats["computed_with"]
        with PartWriter(str(path), table.schema, str(tmp_path)) as part:
            part.write(table)
            part.publish(stats)
    (tmp_path / "out/data/part-00000-of-00002.parquet").unlink()
    capsys.readouterr()
    summary = submit(job, engine_factory=make_engine_factory(description=COMPUTED))
    assert (summary.is_complete, summary.dataset.ok) == (True, 8)
    assert list(summary.dataset.computed_with.values()) == [4]
    assert "Warning" not in capsys.readouterr().err


def test_a_gpu_job_without_gpus_says_so(write_job, make_engine_factory):
    with pytest.raises(JobSpecError, match="Ray finds no GPU on this machine"):
        submit(write_job(device="cuda"), engine_factory=make_engine_factory())


def test_a_failed_run_prints_how_to_go_on(write_job, tmp_path, make_engine_factory, capsys):
    submit(write_job(), engine_factory=make_engine_factory())
    (tmp_path / "out/data/part-00001-of-00002.parquet").write_bytes(b"damaged")
    summary = submit(write_job(), engine_factory=make_engine_factory())
    with pytest.raises(RunFailedError, match="1 part is damaged"):
        finish(summary, "toprovar-batch submit job.yaml")
    output = capsys.readouterr().out
    assert "part-00001-of-00002.parquet is damaged: " in output
    assert "go on with: toprovar-batch submit job.yaml" in output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["submit", "{job}", "--output", "{tmp}/prompts.txt/x"], "prompts.txt is a file, not a folder"),
        (["submit", "{job}", "--output", "{tmp}"], "holds other files"),
        (
            ["submit", "{job}", "--set", "model.vae={tmp}/no.pth", "--set", "model.random_weights=false"],
            "model.",
        ),
        (["submit", "{job}", "--set", "sampling.cfg_insertion_layer=-9"], "names no block"),
        (["submit", "{tmp}/none.yaml"], "none.yaml"),
        (["status", "{tmp}/none"], "no dataset of a job is here"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(write_job, tmp_path, arguments, sentence):
    job = write_job()
    words = [word.format(job=job, tmp=tmp_path) for word in arguments]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1


def test_status_tells_and_verifies(write_job, tmp_path, make_engine_factory):
    submit(write_job(["a", "refuse", "c", "d", "e"]), engine_factory=make_engine_factory())
    runner = CliRunner()
    said = runner.invoke(main, ["status", str(tmp_path / "out"), "--verify"])
    assert said.exit_code == 0
    assert "2 of 2 shards done" in said.output
    assert "1 x refused" in said.output
    record = json.loads(runner.invoke(main, ["status", str(tmp_path / "out"), "--json"]).output)
    assert (record["shards"], record["shards_done"], record["totals"]["ok"], len(record["runs"])) == (
        2,
        2,
        4,
        1,
    )
    plan = tmp_path / "out/_job/samples.parquet"
    plan.rename(tmp_path / "elsewhere")
    unverified = runner.invoke(main, ["status", str(tmp_path / "out"), "--verify"])
    assert unverified.exit_code == 2
    assert "the plan _job/samples.parquet cannot be read" in unverified.stderr
    (tmp_path / "elsewhere").rename(plan)
    part = tmp_path / "out/data/part-00000-of-00002.parquet"
    part.write_bytes(part.read_bytes()[:-100])
    damaged = runner.invoke(main, ["status", str(tmp_path / "out"), "--verify"])
    assert damaged.exit_code == 1
    assert str(part) in damaged.stderr


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b"\xff\xfe", b'{"started": 1, "workers": "two", "seconds": null}']
)
def test_status_bears_what_is_no_record_of_a_run(write_job, tmp_path, content):
    job = load_job(write_job())
    with open_output(job, plan_job(job), dataset_schema(())):
        pass
    runs = tmp_path / "out/_job/runs"
    (runs / "folder.json").mkdir(parents=True)
    (runs / ".DS_Store").write_bytes(b"\0\xff")
    (runs / "notes.txt").touch()
    (runs / "1.json").write_bytes(content)
    runner = CliRunner()
    said = runner.invoke(main, ["status", str(tmp_path / "out")])
    assert said.exit_code == 0, said.output
    assert "1.json: not the record of a run" in said.output
    record = json.loads(runner.invoke(main, ["status", str(tmp_path / "out"), "--json"]).output)
    assert {run["name"] for run in record["runs"]} == {"1.json", "folder.json"}


@pytest.mark.parametrize("key", ["name", "num_samples"])
def test_status_of_a_job_record_that_lacks_something_is_one_sentence(write_job, tmp_path, key):
    job = load_job(write_job())
    with open_output(job, plan_job(job), dataset_schema(())):
        pass
    path = tmp_path / "out/_job/job.json"
    record = json.loads(path.read_text())
    del record[key]
    path.write_text(json.dumps(record))
    said = CliRunner().invoke(main, ["status", str(tmp_path / "out")])
    assert (said.exit_code, said.stderr.count("\n")) == (2, 1)
    assert "job.json is not of this program" in said.stderr
