"""What is compared, and who goes first."""

from toprovar_batch.orchestrator.benchmark.combinations import Combination, combine, rotation


def test_every_combination_is_there_with_policies_side_by_side():
    found = combine(["dense", "detail"], [1, 8], ["torch", "triton"], ["auto"])
    assert len(set(found)) == 8
    assert found[:3] == [
        Combination("dense", 1, "torch"),
        Combination("detail", 1, "torch"),
        Combination("dense", 1, "triton"),
    ]
    assert found[4] == Combination("dense", 8, "torch")


def test_an_option_given_twice_is_timed_twice():
    assert combine(["dense", "dense"], [1], ["auto"], ["auto"]) == [Combination("dense", 1)] * 2


def test_each_repeat_starts_with_another_combination():
    assert [rotation(3, repeat) for repeat in range(4)] == [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]
