"""Job files: what they mean, and what is said about a wrong one."""

import os
import textwrap

import fsspec
import pytest

from toprovar_batch.orchestrator.job.errors import field_paths
from toprovar_batch.orchestrator.job.load import load_job
from toprovar_batch.orchestrator.job.spec import JobSpec
from toprovar_batch.orchestrator.output.identity import differing_fields, job_identity
from toprovar_batch.worker.errors import JobSpecError

BASE = "prompts: {source: p.txt}\noutput: out\n"


@pytest.fixture
def load(tmp_path):
    def load_text(text, *overrides, **options):
        path = tmp_path / "job.yaml"
        path.write_bytes(text if isinstance(text, bytes) else textwrap.dedent(text).encode())
        return load_job(str(path), overrides, **options)

    return load_text


def job_from(**keys):
    return JobSpec.model_validate({"prompts": {"source": "p.txt"}, "output": "out", **keys})


def test_a_minimal_job_has_the_documented_defaults(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = load(BASE)
    assert job.name == "job"
    assert job.prompts.source == str(tmp_path / "p.txt")
    assert job.output == str(tmp_path / "out")
    assert (job.model.preset, job.sampling.seed, job.sampling.images_per_prompt) == ("tiny", 0, 1)
    assert (job.image.h_div_w, job.shard_size, job.policy.name) == (1.0, None, "dense")


def test_paths_count_from_the_job_file_and_overrides_from_the_current_folder(load, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    text = (
        BASE + "model: {vae: weights/vae.pth, text_encoder: google/flan-t5-xl, transformer: hf://a/b/c.pth}\n"
    )
    job = load(text, "prompts.source=q.txt")
    assert job.prompts.source == str(elsewhere / "q.txt")
    assert job.output == str(elsewhere / "out")
    assert job.model.vae == str(tmp_path / "weights/vae.pth")
    assert job.model.text_encoder == "google/flan-t5-xl"
    assert job.model.transformer == "hf://a/b/c.pth"


def test_a_text_encoder_folder_beside_the_job_is_a_path(load, tmp_path):
    (tmp_path / "t5").mkdir()
    assert load(BASE + "model: {text_encoder: t5}").model.text_encoder == str(tmp_path / "t5")


def test_a_job_can_come_from_a_url_with_its_prompts_beside_it():
    fsspec.filesystem("memory").pipe("/jobs/far.yaml", BASE.encode())
    job = load_job("memory://jobs/far.yaml")
    assert (job.name, job.prompts.source) == ("far", "memory://jobs/p.txt")


def test_overrides_are_yaml_and_win_over_the_file(load):
    job = load(
        BASE + "sampling: {seed: 1, cfg_scale: 2}\nmodel:\n",
        "sampling.cfg_scale=[1, 2.5]",
        "prompts.columns=[a, b]",
        "model.preset=infinity-2b",
        "policy.name=dense",
        output="s3://bucket/x",
    )
    assert job.sampling.seed == 1
    assert job.sampling.cfg_scale == (1.0, 2.5)
    assert job.prompts.columns == ("a", "b")
    assert job.model.preset == "infinity-2b"
    assert job.output == "s3://bucket/x"


def test_an_output_from_the_command_line_is_taken_literally(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load(BASE, output="2024").output == str(tmp_path / "2024")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("smpling: {seed: 1}", "unknown key smpling; did you mean sampling?"),
        ("sampling: {cfgscale: 1}", "unknown key sampling.cfgscale; did you mean sampling.cfg_scale?"),
        ("model: {architecture: {dpth: 1}}", "unknown key model.architecture.dpth; did you mean model.architecture.depth?"),
        ("batch_size: 4", "unknown key batch_size; did you mean runtime.batch_size?"),
        ("image: {zzzz: 4}", "unknown key image.zzzz; image takes resolution, format, quality, subsampling, h_div_w"),
        ("sampling: {cfg_scale: 1e3}", "sampling.cfg_scale must be a number or a list, got the text '1e3'; YAML reads 1e3 as text, write 1000"),
        ("sampling: {top_p: '0.5'}", "sampling.top_p must be a number, got the text '0.5'; write it without quotes"),
        ("sampling: {cfg_scale: [1, x]}", "sampling.cfg_scale[1] must be a number, got the text 'x'"),
        ("sampling: {cfg_scale: [1, -1]}", "sampling.cfg_scale[1] must be at least 0, got -1"),
        ("sampling: {cfg_scale: .inf}", "sampling.cfg_scale must be a finite number or a list, got inf"),
        ("name: yes", "name must be text, got true; YAML reads yes, no, on, off, true and false as booleans, put the text in quotes"),
        ("name: 2024-01-01", "name must be text, got the date 2024-01-01; put it in quotes"),
        ("shard_size: 64.0", "shard_size must be a whole number, got 64.0"),
        ("shard_size: true", "shard_size must be a whole number, got true"),
        ("shard_size: 0", "shard_size must be at least 1, got 0"),
        ("image: {format: jpg}", "image.format must be one of png, jpeg, webp, got the text 'jpg'; did you mean jpeg?"),
        ("image: {resolution: 2M}", "image.resolution must be one of 0.06M, 0.25M, 0.60M, 1M, got the text '2M'"),
        ("image: {h_div_w: 4}", "image.h_div_w must be at most 3, got 4"),
        ("image: {h_div_w: [1, 0.1]}", "image.h_div_w[1] must be at least 0.33, got 0.1"),
        ("image: {h_div_w: .nan}", "image.h_div_w must be at most 3, got nan"),
        ("image: {h_div_w: [1, 1]}", "image.h_div_w: the same value is in the list twice"),
        ("image: {h_div_w: []}", "image.h_div_w must not be empty"),
        ("image: 5", "image must be a group of keys, got 5"),
        ("policy: fast", "policy.name must be one of dense, toprovar, fastvar, skipvar, detail, fixed_exit, replay, got the text 'fast'; did you mean fastvar?"),
        ("policy: 5", "policy must be a group of keys, got 5"),
        ("policy: {beta: 1}", "policy.name is missing and has no default; it is one of dense, toprovar, fastvar, skipvar, detail, fixed_exit, replay"),
        ("policy: {name: toprovar, beta: -1}", "policy.beta must be at least 0, got -1"),
        ("policy: {name: toprovar, bta: 1}", "unknown key policy.bta; did you mean policy.beta?"),
        ("policy: {name: fixed_exit, beta: 1}", "unknown key policy.beta; it belongs to policy toprovar, not to fixed_exit"),
        ("policy: {name: dense, format: png}", "unknown key policy.format; did you mean prompts.format?"),
        ("policy: {name: fastvar, depth_threshold: 0.5}", "unknown key policy.depth_threshold; it belongs to policy toprovar, not to fastvar"),
        ("policy: {name: dense, detail_treshold: 1}", "unknown key policy.detail_treshold; policy dense takes pruning_map, name"),
        ("policy: {name: fastvar, keep_ratio: [0.5, 2]}", "policy.keep_ratio[1] must be at most 1, got 2"),
        ("policy: {name: toprovar, a_min: 0.9}", "policy: a_max, 0.8, is below a_min, 0.9; raise it"),
        ("policy: {name: skipvar, skip_below: 0.5}", "policy: conditional_below, 0.2, is below skip_below, 0.5; raise it"),
        ("policy: {name: replay}", "policy: give one of preset (paper-2b) and plan"),
        ("policy: {name: toprovar, scale_pruning: false, layer_pruning: false, token_pruning: false}", "policy: scale_pruning, layer_pruning and token_pruning are all false, which prunes nothing; use policy: dense"),
        ("policy: {file: 3}", "policy.file must be text, got 3"),
        ("policy: {file: ''}", "policy.file is empty; name a file"),
        ("runtime: {num_workers: x, bogus: 1}", "runtime.num_workers must be a whole number, got the text 'x' (and 1 more)"),
        ("model: {vae: ''}", "model.vae must not be empty"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_its_file_and_the_mend(load, tmp_path, extra, message):
    with pytest.raises(JobSpecError) as caught:
        load(BASE + extra)
    assert str(caught.value) == f"{tmp_path / 'job.yaml'}: {message}"


def test_a_policy_file_stands_for_its_keys_and_what_is_beside_it_wins(load, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "name: toprovar\nbeta: 0.1\na_max: 0.9\nprovenance: {date: 2026-01-01}\n"
    )
    job = load(BASE + "policy: {file: mine.yaml, a_max: 0.5}", "policy.pruning_map=true")
    assert (job.policy.name, job.policy.beta, job.policy.a_max) == ("toprovar", 0.1, 0.5)
    assert job.policy.pruning_map
    spelled_out = load(BASE + "policy: {name: toprovar, beta: 0.1, a_max: 0.5, pruning_map: true}")
    assert job_identity(job) == job_identity(spelled_out)


@pytest.mark.parametrize(
    ("content", "extra", "message"),
    [
        ("name: toprovar\nbeta: x", "", "mine.yaml: beta must be a number, got the text 'x'"),
        ("name: toprovar", ", beta: x", "job.yaml: policy.beta must be a number, got the text 'x'"),
        ("name: toprovar", ", name: fastvar", "job.yaml: policy.name: fastvar is asked for, but"),
        ("", "", "mine.yaml: the policy file is empty; it needs at least name"),
        ("- 1", "", "mine.yaml: a policy file is a mapping of keys, this one is the list [1]"),
        ("bta: 1", "", "mine.yaml: name is missing, such as name: toprovar"),
        (
            "policy: {name: toprovar}",
            "",
            "mine.yaml: name is missing, such as name: toprovar; its settings stand",
        ),
        ("name: toprovar\na_min: 0.9", "", "mine.yaml: policy: a_max, 0.8, is below a_min, 0.9; raise it"),
        ("name: replay", "", "mine.yaml: policy: give one of preset (paper-2b) and plan"),
        ("name: toprovar", ", a_min: 0.9", "job.yaml: policy: a_max, 0.8, is below a_min, 0.9; raise it"),
    ],
)
def test_a_wrong_policy_file_is_named(load, tmp_path, content, extra, message):
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(JobSpecError) as caught:
        load(BASE + f"policy: {{file: mine.yaml{extra}}}")
    assert message in str(caught.value)


def test_overrides_may_choose_a_policy_and_then_set_its_keys(load):
    job = load(BASE, "policy=toprovar", "policy.beta=2")
    assert (job.policy.name, job.policy.beta) == ("toprovar", 2.0)
    assert load(BASE + "policy: toprovar", "policy=").policy.name == "dense"


def test_two_ways_to_give_the_image_size_exclude_each_other(load):
    text = "prompts: {source: p.csv, h_div_w_column: ratio}\noutput: o\nimage: {h_div_w: [1, 2]}"
    with pytest.raises(JobSpecError, match=r"job.yaml: prompts.h_div_w_column and a list in image.h_div_w"):
        load(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "the job file is empty"),
        (b"# only a comment\n", "the job file is empty"),
        (b"- a\n- b", "a job file is a mapping of keys, this one is the list"),
        (b"just text", "a job file is a mapping of keys, this one is the text 'just text'"),
        (b"output: o", "prompts is missing and has no default"),
        (b"prompts: {source: p}", "output is missing and has no default"),
        (b"prompts: {format: csv}\noutput: o", "prompts.source is missing"),
        (b"a: [1\nb: 2", "line 2: not readable as YAML"),
        (b"a:\n\t- 1", "line 2: not readable as YAML"),
        (b"a: 1\nb: 1\na: 2", "line 3: not readable as YAML: the key 'a' is there twice"),
        (b"a: {b: 1, b: 2}", "line 1: not readable as YAML: the key 'b' is there twice"),
        (b"on: 1", "line 1: not readable as YAML: the key 'on' is not text; put it in quotes"),
        (b"a: 1\nb: \xff", "line 2: the job file is not UTF-8 text"),
        (b"a: 1\nb: \x00", "line 2: not readable as YAML: the character U+0000 is not allowed"),
        (b"a: &x [*x]", "line 1: not readable as YAML: aliases (*name) are not supported"),
        (b"a: 2024-13-45", "line 1: not readable as YAML: '2024-13-45' is not a valid timestamp"),
        (
            b"a: !!python/object:os.system x",
            "line 1: not readable as YAML: could not determine a constructor",
        ),
        (b"a: 1\n---\nb: 2", "line 2: not readable as YAML: expected a single document"),
        (b"[" * 5000, "not readable as YAML: nested too deeply"),
    ],
)
def test_an_unreadable_file_is_named_with_the_line(load, tmp_path, text, message):
    with pytest.raises(JobSpecError) as caught:
        load(text)
    assert str(caught.value).startswith(str(tmp_path / "job.yaml"))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sampling.cfg_scal=1", "--set: unknown key sampling.cfg_scal; did you mean sampling.cfg_scale?"),
        (
            "sampling.cfg_scale=abc",
            "--set: sampling.cfg_scale must be a number or a list, got the text 'abc'",
        ),
        ("sampling={seed: x}", "--set: sampling.seed must be a whole number, got the text 'x'"),
        ("sampling.seed", "--set sampling.seed: write it as key.sub=value"),
        (".seed=1", "--set .seed=1: write it as key.sub=value"),
        ("name=[a", "--set name=[a, line 1: not readable as YAML"),
        ("output.x=1", "--set output.x: output is a value, not a group"),
    ],
)
def test_a_wrong_override_is_named(load, override, message):
    with pytest.raises(JobSpecError) as caught:
        load(BASE, override)
    assert message in str(caught.value)


def test_a_missing_job_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(JobSpecError, match=r"no\.yaml: there is no such job file"):
        load_job(str(tmp_path / "no.yaml"))
    with pytest.raises(JobSpecError, match="is a folder; give the job file in it"):
        load_job(str(tmp_path))


def test_identity_ignores_where_and_how_a_job_runs():
    one = job_from(name="a", runtime={"num_workers": 3, "batch_size": 2})
    other = job_from(name="b", output="elsewhere", prompts={"source": "other.txt"})
    assert job_identity(one) == job_identity(other)


def test_identity_is_the_same_for_a_default_and_its_value_spelled_out():
    spelled = job_from(
        model={
            "preset": "tiny",
            "architecture": {"depth": 9},
            "transformer": "package://worker/reference/weights/transformer",
        },
        sampling={"cfg_scale": 3, "temperature": 1.0, "seed": 0},
        image={"resolution": "0.25M", "h_div_w": (1.0,)},
        policy="dense",
    )
    assert differing_fields(job_identity(job_from()), job_identity(spelled)) == []


@pytest.mark.parametrize(
    ("keys", "field"),
    [
        ({"sampling": {"cfg_scale": (1.0,) * 10}}, "sampling.cfg_scale"),
        ({"sampling": {"seed": 1}}, "sampling.seed"),
        ({"image": {"h_div_w": (1.0, 2.0)}}, "image.h_div_w"),
        ({"model": {"weights_seed": 1}}, "model.weights_seed"),
        ({"shard_size": 8}, "shard_size"),
    ],
)
def test_identity_names_the_field_that_changes_the_content(keys, field):
    assert differing_fields(job_identity(job_from()), job_identity(job_from(**keys))) == [field]


def test_random_weights_are_another_job():
    differing = differing_fields(
        job_identity(job_from()), job_identity(job_from(model={"random_weights": True}))
    )
    assert differing[:4] == [
        f"model.{key}" for key in ("transformer", "vae", "text_encoder", "random_weights")
    ]


def test_shipped_weights_are_told_by_their_content_and_not_by_their_place(tmp_path, monkeypatch):
    identities = []
    for place, content, time_ns in (("here", b"old", 1), ("there", b"old", 2), ("there", b"new", 2)):
        folder = tmp_path / place / "worker/reference/weights/transformer"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "a.safetensors").write_bytes(content)
        os.utime(folder / "a.safetensors", ns=(time_ns, time_ns))
        monkeypatch.setattr("toprovar_batch.worker.fetch._PACKAGE_FOLDER", tmp_path / place)
        identities.append(job_identity(job_from()))
    here, there, changed = identities
    assert here == there
    assert str(tmp_path) not in str(here)
    assert differing_fields(there, changed) == ["model.transformer (file)"]


def replace_file(path, content):
    """Put another file of the same size in its place, as new weights would be."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def test_identity_notices_local_weights_that_were_replaced(tmp_path):
    (tmp_path / "t5").mkdir()
    weights, shard, hidden = tmp_path / "vae.pth", tmp_path / "t5/model.safetensors", tmp_path / "t5/.cache"
    for path in (weights, shard, hidden):
        path.write_bytes(b"old")
    job = job_from(model={"transformer": "hf://a/b/c", "vae": str(weights), "text_encoder": str(weights.parent / "t5")})  # fmt: skip
    first = job_identity(job)
    assert [key for key in first if "(file)" in key] == ["model.vae (file)", "model.text_encoder (file)"]
    replace_file(hidden, b"new")
    assert job_identity(job) == first
    replace_file(weights, b"new")
    assert differing_fields(first, job_identity(job)) == ["model.vae (file)"]
    replace_file(shard, b"new")
    assert differing_fields(first, job_identity(job)) == ["model.vae (file)", "model.text_encoder (file)"]


def test_weights_that_one_machine_does_not_have_are_not_compared(tmp_path):
    (tmp_path / "vae.pth").touch()
    job = job_from(model={"preset": "infinity-2b", "vae": str(tmp_path / "vae.pth")})
    with_file = job_identity(job)
    (tmp_path / "vae.pth").unlink()
    assert differing_fields(with_file, job_identity(job)) == []


def test_a_field_that_only_one_identity_has_differs():
    assert differing_fields({"a": 1, "b": None}, {"a": 1, "c": 2}) == ["b", "c"]


def test_the_engine_spec_holds_what_an_engine_needs_and_nothing_else():
    job = job_from(sampling={"seed": 5, "top_p": 0.5}, image={"h_div_w": (2.0, 1.0), "format": "webp"})
    spec = job.engine_spec()
    assert (spec.sampling.top_p, spec.image.format, spec.image.h_div_w) == (0.5, "webp", 2.0)
    assert not hasattr(spec.sampling, "seed")


def test_every_key_of_a_job_is_in_the_reference(pytestconfig):
    reference = (pytestconfig.rootpath / "docs/job-file.md").read_text(encoding="utf-8")
    missing = [path for path in field_paths(JobSpec) if f"`{path}`" not in reference]
    assert missing == []


@pytest.mark.parametrize("name", ["demo", "mjhq", "throughput"])
def test_the_jobs_of_this_repository_load(pytestconfig, name):
    job = load_job(str(pytestconfig.rootpath / f"jobs/{name}.yaml"))
    assert job.name == name


def test_numbers_with_colons_are_texts(load):
    written = BASE + "image: {format: jpeg, subsampling: 4:2:0}\n"
    assert load(written).image.subsampling == "4:2:0"
    assert load(BASE, "image.subsampling=4:2:2").image.subsampling == "4:2:2"
