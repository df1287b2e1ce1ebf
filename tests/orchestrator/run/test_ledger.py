from toprovar_batch.orchestrator.run.ledger import ShardLedger


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


def test_a_shard_that_killed_its_worker_goes_last_and_whole():
    ledger = ShardLedger([0, 1], max_attempts=4)
    taken = run(ledger, [("death", ["a", "b"]), "ok", "ok"])
    assert [(item.shard_id, item.attempt, item.suspects) for item in taken] == [
        (0, 1, ()),
        (1, 1, ()),
        (0, 2, ()),
    ]
    assert not ledger.failed


def test_from_the_second_death_on_its_samples_run_in_pieces_and_no_others():
    ledger = ShardLedger([0], max_attempts=3)
    taken = run(
        ledger, [("death", list("abcdefghijkl")), ("death", list("cdefghijkl")), ("death", list("fgh"))]
    )
    assert [item.suspects for item in taken] == [
        (),
        (),
        (tuple("cde"), tuple("fgh"), tuple("ijk"), tuple("l")),
    ]
    # Those that did not run go first: the worker that then takes the suspects has made images.
    assert run(ledger, [("death", list("f"))])[0].suspects == (
        tuple("ijk"),
        tuple("l"),
        tuple("f"),
        tuple("g"),
        tuple("h"),
    )
    # What came through is no suspect any more.
    taken = run(ledger, [("death", ["f"]), "ok"])
    assert [item.suspects for item in taken] == [(("g",), ("h",), ("f",)), ()]
    assert list(taken[-1].poisoned) == ["f"]


def test_a_batch_of_suspects_runs_one_by_one():
    ledger = ShardLedger([0], max_attempts=3)
    taken = run(
        ledger, [("death", list("abcdefgh")), ("death", list("cdefgh")), ("death", ["e"]), ("death", ["e"])]
    )
    assert taken[2].suspects == tuple((sample,) for sample in "cdefgh")
    assert list(ledger.take().poisoned) == ["e"]


def test_a_poisoned_sample_of_many_is_found_however_few_attempts_there_are():
    in_flight = [f"s{row}" for row in range(48)]
    ledger = ShardLedger([0], max_attempts=3)
    deaths = 0
    while "s17" not in (assignment := ledger.take()).poisoned:
        groups = assignment.suspects or (in_flight,)
        ledger.fail(0, next(group for group in groups if "s17" in group), "death", "it died")
        deaths += 1
    assert deaths == 2 + 1 + 2  # whole, in pieces of 6, alone
    assert not ledger.failed


def test_a_sample_alone_at_two_deaths_is_poisoned():
    ledger = ShardLedger([0], max_attempts=4)
    taken = run(ledger, [("death", ["a", "b"]), ("death", ["b"]), ("death", ["b"]), "ok"])
    assert [sorted(item.poisoned) for item in taken] == [[], [], [], ["b"]]
    assert taken[-1].poisoned["b"] == "killed its worker twice when generated alone: it died"


def test_two_samples_alone_at_one_death_each_are_not_poisoned():
    ledger = ShardLedger([0], max_attempts=9)
    taken = run(ledger, [("death", ["a", "b"]), ("death", ["a"]), ("death", ["b"]), "ok"])
    assert taken[-1].poisoned == {}


def test_a_death_in_a_batch_is_no_strike():
    ledger = ShardLedger([0], max_attempts=9)
    assert run(ledger, [("death", ["a", "b"]), ("death", ["a", "b"]), "ok"])[-1].poisoned == {}


def test_an_exception_of_a_sample_alone_poisons_at_once_with_its_sentence():
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


def test_an_exception_of_a_worker_that_has_made_nothing_takes_two_strikes():
    ledger = ShardLedger([0], max_attempts=4)
    for _ in range(2):
        assert ledger.take().poisoned == {}
        ledger.fail(0, ["a"], "exception", "it raised", "run")
    assert ledger.take().poisoned == {"a": "it raised"}


def test_nobody_is_guilty_where_nobody_succeeds():
    ledger = ShardLedger([0], max_attempts=3)
    for _ in range(3):
        assert ledger.take().poisoned == {}
        ledger.fail(0, ["a"], "exception", "it raised", "nobody")
    assert ledger.failed == {0: "3 attempts failed, the last one because it raised"}


def test_shards_that_are_given_back_have_a_clean_slate():
    ledger = ShardLedger([0, 1], max_attempts=2)
    run(ledger, [("exception", ["a"]), ("death", ["x", "y"]), ("death", []), ("death", ["x", "y"])])
    assert list(ledger.failed) == [1]
    ledger.give_back([0, 1])
    assert ledger.failed == {}
    again = run(ledger, ["ok", "ok"])
    assert [(item.shard_id, item.suspects, item.poisoned) for item in again] == [(0, (), {}), (1, (), {})]


def test_only_what_nobody_has_tried_may_follow_another_shard():
    ledger = ShardLedger(range(2), max_attempts=4)
    assert ledger.take(fresh=True).shard_id == 0
    ledger.fail(0, (), "death", "its process died")
    assert ledger.take(fresh=True).shard_id == 1
    assert ledger.take(fresh=True) is None
    assert ledger.take().shard_id == 0


def test_a_sample_beside_those_of_another_shard_was_not_alone():
    ledger = ShardLedger([0], max_attempts=4)
    attempts = []
    for alone in (False, True, True):
        attempts.append(ledger.take())
        ledger.fail(0, ("a",), "death", "its process died", alone=alone)
    assert [attempt.poisoned for attempt in attempts] == [{}, {}, {}]
    assert list(ledger.take().poisoned) == ["a"]
