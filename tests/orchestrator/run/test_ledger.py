from toprovar_batch.orchestrator.run.ledger import LoadGuard, ShardLedger


def run(ledger, happenings):
    """Take shards and let the named things happen to them; give the assignments."""
    taken = []
    for happening in happenings:
        assignment = ledger.take()
        taken.append(assignment)
        if happening == "ok":
            ledger.commit(assignment.shard_id)
        else:
            trouble, in_flight = happening
            ledger.fail(assignment.shard_id, in_flight, trouble, "it died")
    return taken


def test_shards_go_out_in_order_and_once():
    ledger = ShardLedger([3, 1, 2], max_attempts=4)
    assert [assignment.shard_id for assignment in run(ledger, ["ok", "ok", "ok"])] == [3, 1, 2]
    assert ledger.take() is None
    assert ledger.num_open == 0


def test_a_shard_under_way_is_open_but_not_waiting():
    ledger = ShardLedger([0], max_attempts=4)
    ledger.take()
    assert (ledger.num_waiting, ledger.num_open) == (0, 1)


def test_a_shard_that_killed_its_worker_goes_last_and_isolated():
    ledger = ShardLedger([0, 1], max_attempts=4)
    taken = run(ledger, [("death", ["a", "b"]), "ok", "ok"])
    assert [(item.shard_id, item.attempt, item.isolated) for item in taken] == [
        (0, 1, False),
        (1, 1, False),
        (0, 2, True),
    ]
    assert not ledger.failed


def test_a_sample_alone_at_two_deaths_is_poisoned():
    ledger = ShardLedger([0], max_attempts=4)
    taken = run(ledger, [("death", ["a", "b"]), ("death", ["b"]), ("death", ["b"]), "ok"])
    assert [sorted(item.poisoned) for item in taken] == [[], [], [], ["b"]]
    assert taken[-1].poisoned["b"] == "killed its worker twice when generated alone: it died"


def test_two_samples_at_one_isolated_death_each_are_not_poisoned():
    ledger = ShardLedger([0], max_attempts=9)
    taken = run(ledger, [("death", ["a", "b"]), ("death", ["a"]), ("death", ["b"]), "ok"])
    assert taken[-1].poisoned == {}


def test_a_death_in_a_batch_is_no_strike():
    ledger = ShardLedger([0], max_attempts=9)
    assert run(ledger, [("death", ["a"]), ("death", ["a"]), "ok"])[-1].poisoned == {}


def test_an_isolated_exception_poisons_at_once_with_its_sentence():
    ledger = ShardLedger([0], max_attempts=4)
    taken = run(ledger, [("exception", ["a", "b"]), ("exception", ["a"]), "ok"])
    assert taken[-1].poisoned == {"a": "it died"}


def test_any_number_of_poisoned_samples_is_found():
    ledger = ShardLedger([0], max_attempts=3)
    deaths = [("death", [sample]) for sample in "abcdefgh" for _ in range(2)]
    taken = run(ledger, [("death", ["a", "b"]), *deaths, "ok"])
    assert sorted(taken[-1].poisoned) == list("abcdefgh")
    assert not ledger.failed


def test_a_shard_past_its_attempts_is_given_up_and_the_others_go_on():
    ledger = ShardLedger([0, 1], max_attempts=3)
    nothing_known = ("death", [])
    taken = run(ledger, [nothing_known, "ok", nothing_known, nothing_known])
    assert [item.shard_id for item in taken] == [0, 1, 0, 0]
    assert ledger.failed == {0: "3 attempts failed, the last one because it died"}
    assert ledger.num_open == 0


def test_load_failures_count_in_a_row():
    guard = LoadGuard(max_failures=2)
    guard.failed()
    guard.loaded()
    guard.failed()
    assert guard.may_start
    guard.failed()
    assert not guard.may_start
