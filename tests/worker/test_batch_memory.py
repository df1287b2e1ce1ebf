"""What a batch takes of a GPU's memory, told without one."""

from pathlib import Path


def test_layers_pass_their_cases(run_cases):
    assert run_cases(Path(__file__).with_name("batch_memory_cases.py")) == 4
