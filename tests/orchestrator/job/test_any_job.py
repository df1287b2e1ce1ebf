"""Whatever a job file holds, there is a job, or one sentence."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from toprovar_batch.orchestrator.job.load import load_job
from toprovar_batch.orchestrator.job.spec import JobSpec
from toprovar_batch.worker.errors import JobSpecError

EXAMPLES = settings(derandomize=True, deadline=None, database=None, max_examples=60)
VALID = {
    "name": "any",
    "prompts": {"source": "prompts.txt"},
    "output": "out",
    "shard_size": 4,
    "model": {"random_weights": True},
    "image": {"resolution": "0.06M", "h_div_w": 1.0},
    "sampling": {"seed": 0, "cfg_scale": 3.0, "temperature": 0.5},
    "policy": {"name": "toprovar"},
    "runtime": {"num_workers": 2, "device": "cpu"},
}


def keys_of(model):
    """The keys of a model, and those of the models in it, each as a path."""
    for name, field in model.model_fields.items():
        yield (name,)
        inner = field.annotation
        if isinstance(inner, type) and hasattr(inner, "model_fields"):
            yield from ((name, *path) for path in keys_of(inner))


TEXTS = st.one_of(
    st.text(max_size=12), st.sampled_from(["", "auto", "1e3", "~nobody/x", "s3://", "a::b", "\0", "yes"])
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    TEXTS,
    st.dates(),
    st.binary(max_size=4),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS, inner, max_size=3),
    max_leaves=6,
)
PATHS = st.sampled_from(sorted(keys_of(JobSpec)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a prompt file, which a job may name."""
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "prompts.txt").write_text("a cat\n", encoding="utf-8")
    return folder


def check(folder, content, overrides=()):
    """Load a job file of some bytes."""
    path = folder / "job.yaml"
    path.write_bytes(content)
    try:
        job = load_job(str(path), overrides)
    except JobSpecError as error:
        found = str(error)
    else:
        assert isinstance(job, JobSpec)
        return
    assert found.strip()
    assert "\n" not in found


@EXAMPLES
@given(changes=st.lists(st.tuples(PATHS, VALUES), min_size=1, max_size=4))
def test_a_job_with_any_values_is_a_job_or_a_sentence(folder, changes):
    job = {name: dict(value) if isinstance(value, dict) else value for name, value in VALID.items()}
    for (*groups, key), value in changes:
        place = job
        for group in groups:
            if not isinstance(place.get(group), dict):
                place[group] = {}
            place = place[group]
        place[key] = value
    check(folder, yaml.safe_dump(job, allow_unicode=True).encode(errors="surrogatepass"))


@EXAMPLES
@given(value=VALUES)
def test_any_yaml_is_a_job_or_a_sentence(folder, value):
    check(folder, yaml.safe_dump(value, allow_unicode=True).encode(errors="surrogatepass"))


@EXAMPLES
@given(
    content=st.binary(max_size=200)
    | st.text(alphabet="{}[]:,-&*!|>'\"#% \n\tab1?", max_size=60).map(str.encode)
)
def test_any_bytes_are_a_job_or_a_sentence(folder, content):
    check(folder, content)


@EXAMPLES
@given(path=PATHS, value=VALUES.map(lambda value: yaml.safe_dump(value, default_flow_style=True)) | st.text())
def test_any_override_is_a_job_or_a_sentence(folder, path, value):
    check(folder, yaml.safe_dump(VALID).encode(), [f"{'.'.join(path)}={value}"])
