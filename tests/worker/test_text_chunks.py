"""What the text gives to the transformer, in chunks of fixed shape."""

import pytest
import torch

from toprovar_batch.worker.infinity.config import TransformerArchitecture
from toprovar_batch.worker.infinity.text_shapes import CHUNK_ROWS, chunks, text_capacity
from toprovar_batch.worker.models import random_transformer
from toprovar_batch.worker.text_chunks import TextChunks

CPU = torch.device("cpu")
SIZES = TransformerArchitecture(2, 64, 2, 24, 8)
LENGTHS = (3, 70, 64, 1, 65, 9, 12, 5, 6, 7, 8, 2)


@pytest.fixture(scope="module")
def model():
    return random_transformer(SIZES, 3, CPU, torch.float32)


def _features(lengths=LENGTHS):
    return [
        torch.randn(length, SIZES.text_width, generator=torch.Generator().manual_seed(row))
        for row, length in enumerate(lengths)
    ]


@pytest.mark.parametrize(
    ("length", "capacity"), [(1, 64), (64, 64), (65, 128), (129, 256), (257, 512), (512, 512)]
)
def test_texts_are_padded_to_four_lengths(length, capacity):
    assert text_capacity(length) == capacity


def test_chunks_hold_texts_of_one_capacity_and_every_text_once():
    made = chunks([*LENGTHS, 300])
    assert sorted(row for _, rows in made for row in rows) == list(range(len(LENGTHS) + 1))
    assert all(text_capacity((*LENGTHS, 300)[row]) == capacity for capacity, rows in made for row in rows)
    assert max(len(rows) for _, rows in made) == CHUNK_ROWS


def test_contexts_are_those_of_all_rows_together(model):
    features = _features()
    with torch.inference_mode():
        mine, expected = TextChunks(model, None).context(features), model.encode_text(features)
    assert mine.text_lengths == expected.text_lengths
    torch.testing.assert_close(mine.cond, expected.cond)
    torch.testing.assert_close(mine.head_modulation, expected.head_modulation)
    for block, other in zip(mine.blocks, expected.blocks, strict=True):
        torch.testing.assert_close(block.adaln, other.adaln)
        assert torch.equal(block.qkv_bias, other.qkv_bias)
        for row, length in enumerate(LENGTHS):
            torch.testing.assert_close(block.text_keys[row, :, :length], other.text_keys[row, :, :length])
            torch.testing.assert_close(block.text_values[row, :, :length], other.text_values[row, :, :length])


def test_a_rows_context_is_the_same_to_the_bit_among_any_rows(model):
    features = _features()
    with torch.inference_mode():
        whole = TextChunks(model, None).context(features)
        for rows in ([1], [5, 0], [11, 4, 2]):
            some = TextChunks(model, None).context([features[row] for row in rows])
            for place, row in enumerate(rows):
                assert torch.equal(some.cond[place], whole.cond[row])
                length = LENGTHS[row]
                for block, other in zip(some.blocks, whole.blocks, strict=True):
                    assert torch.equal(block.adaln[:, place], other.adaln[:, row])
                    assert torch.equal(block.text_keys[place, :, :length], other.text_keys[row, :, :length])


def test_the_work_of_a_chunk_is_replayed_over_the_same_tensors(model):
    bodies, cleared = {}, []

    class FirstBodies:
        def run(self, key, body):
            return bodies.setdefault(key, body)()

        def clear(self):
            cleared.append(set(bodies))
            bodies.clear()

    replayed = TextChunks(model, FirstBodies())
    with torch.inference_mode():
        for lengths in (LENGTHS, LENGTHS[::-1], (5,), (90, 2)):
            features = _features(lengths)
            mine, expected = replayed.context(features), TextChunks(model, None).context(features)
            assert torch.equal(mine.cond, expected.cond)
            assert torch.equal(mine.blocks[1].text_values, expected.blocks[1].text_values)
    assert set(bodies) == {("text", 64), ("text", 128)}
    assert not cleared  # the memory has room for the longest texts from the start


def test_texts_of_all_lengths_are_made_in_the_memory_of_the_longest(model):
    chunks_of = TextChunks(model, None)
    with torch.inference_mode():
        for lengths in ((3,), (300,), (70, 3)):
            chunks_of.context(_features(lengths))
        pointers = {chunks_of._make(capacity, []).keys.data_ptr() for capacity in (64, 128, 512)}
    assert len(pointers) == 1
