"""Whose fault it is where nobody succeeds."""

import pytest

from toprovar_batch.orchestrator.run.breaker import Breaker


def fail(breaker, worker, *samples, trouble="exception", reason="CUDA error"):
    return breaker.failed(worker, 0, samples, trouble, reason)


def test_proof_is_of_the_worker_then_of_the_run():
    breaker = Breaker()
    assert breaker.proof("node:1") == "nobody"
    breaker.succeeded("node:1")
    assert (breaker.proof("node:1"), breaker.proof("node:2")) == ("worker", "run")


def test_the_same_exception_over_unrelated_samples_is_the_fault_of_the_place():
    breaker = Breaker()
    breaker.succeeded("good:1")
    assert breaker.failed("bad:1", 3, ["a", "b"], "exception", "CUDA error 700") is None
    assert breaker.failed("bad:2", 4, ["c"], "exception", "CUDA error 719") is None
    found = breaker.failed("bad:3", 5, ["d"], "exception", "CUDA error 700")
    assert (found.host, found.failures, found.everywhere) == ("bad", 3, False)
    assert (found.shard_ids, found.reason) == ({3, 4, 5}, "CUDA error 700")


def test_a_sample_that_fails_again_and_again_is_no_reason_to_suspect_the_place():
    breaker = Breaker()
    assert not any(
        fail(breaker, f"node:{n}", *samples) for n, samples in enumerate(["abcd", "abcd", "ab", "a", "a"])
    )


@pytest.mark.parametrize(
    ("worker", "reason"), [("node:1", "CUDA error"), ("other:3", "CUDA error"), ("node:3", "ValueError")]
)
def test_a_worker_that_has_made_images_another_host_and_another_exception_do_not_count(worker, reason):
    breaker = Breaker()
    breaker.succeeded("node:1")
    fail(breaker, "node:2", "a")
    fail(breaker, "node:2", "b")
    assert fail(breaker, worker, "c", reason=reason) is None


def test_a_new_worker_that_makes_an_image_clears_its_host():
    breaker = Breaker()
    breaker.succeeded("node:0")
    fail(breaker, "node:1", "a")
    fail(breaker, "node:2", "b")
    breaker.succeeded("node:0")  # as before
    breaker.succeeded("node:3")
    assert fail(breaker, "node:4", "c") is None


def test_all_hosts_are_one_as_long_as_nobody_has_made_an_image():
    breaker = Breaker()
    found = [fail(breaker, f"node-{n}:1", f"s{n}") for n in range(3)]
    assert [item is not None for item in found] == [False, False, True]
    assert found[-1].everywhere


def test_deaths_count_only_where_nobody_succeeds():
    breaker = Breaker()
    found = [fail(breaker, f"node:{n}", f"s{n}", trouble="death") for n in range(8)]
    assert [item is not None for item in found] == [False] * 7 + [True]
    breaker.succeeded("node:9")
    assert not any(fail(breaker, f"node:{n}", f"s{n}", trouble="death") for n in range(20))


def test_failures_outside_the_engine_count_by_shard():
    breaker = Breaker()
    verdicts = [breaker.failed(f"node:{n}", n, (), "exception", "none of 16 could be made") for n in range(3)]
    assert verdicts[-1].shard_ids == {0, 1, 2}
