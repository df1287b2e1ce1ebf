"""Whatever becomes of a checkpoint's bytes, reading gives tensors or one sentence."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from toprovar_batch.worker.errors import CheckpointError
from toprovar_batch.worker.infinity.checkpoint import read_state_dict

EXAMPLES = settings(derandomize=True, deadline=None, database=None, max_examples=100)
STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
HEADER = 400  # bytes; the header of each form lies within its first or last ones


def save_legacy(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


FORMS = {"w.safetensors": save_file, "zip.pth": torch.save, "legacy.pth": save_legacy}


@pytest.fixture(scope="module", params=FORMS)
def whole(request, tmp_path_factory):
    """A whole checkpoint of one form."""
    path = tmp_path_factory.mktemp("weights") / request.param
    FORMS[request.param](STATE, path)
    assert read_state_dict(path).keys() == STATE.keys()
    return path


def check(whole, content):
    """Read bytes as a checkpoint: tensors, or a sentence with the file's name."""
    # Another name each time: PyTorch maps the file, and a mapped file must not change.
    path = whole.with_name(f"damaged{whole.suffix}")
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    try:
        state = read_state_dict(path)
    except CheckpointError as error:
        found = str(error)
    else:
        assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())
        return True
    assert str(path) in found
    assert "\n" not in found
    return False


@EXAMPLES
@given(data=st.data())
def test_changed_bytes_give_tensors_or_a_sentence(whole, data):
    content = bytearray(whole.read_bytes())
    length = len(content)
    places = st.integers(0, min(HEADER, length) - 1) | st.integers(max(0, length - HEADER), length - 1)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(places | st.integers(0, length - 1))] = data.draw(st.integers(0, 255))
    check(whole, content)


@EXAMPLES
@given(data=st.data())
def test_a_checkpoint_that_is_cut_off_gives_a_sentence(whole, data):
    content = whole.read_bytes()
    assert not check(whole, content[: data.draw(st.integers(0, len(content) - 1))])


@EXAMPLES
@given(content=st.binary(max_size=300))
def test_any_bytes_give_a_sentence(whole, content):
    assert not check(whole, content)
