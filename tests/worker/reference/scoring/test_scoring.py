"""Verdicts and scores on hand-made detections, and on the truth of rendered scenes."""

import pytest
import torch

from toprovar_batch.worker.reference.scenes import (
    Wanted,
    ground_truth,
    pack,
    render,
    sample_scenes,
    task_prompt,
)
from toprovar_batch.worker.reference.scenes.vocab import TASKS
from toprovar_batch.worker.reference.scoring.detector import Detection
from toprovar_batch.worker.reference.scoring.scorer_check import near_misses
from toprovar_batch.worker.reference.scoring.verdict import (
    TaskScore,
    check_wanted,
    clustered_error,
    directions,
    judge,
    overall_score,
    task_score,
)


def thing(shape, colour="red", x=50.0, y=50.0, side=20.0):
    return Detection(shape, colour, 0.9, (x - side / 2, y - side / 2, x + side / 2, y + side / 2))


A_CUBE = (Wanted("cube", None, 1),)
CUBE_AND_CONE = (Wanted("cube", None, 1), Wanted("cone", None, 1))
RED_CUBE = (Wanted("cube", "red", 1),)
THREE_RED_CUBES = (Wanted("cube", "red", 3),)
RED_CUBE_BLUE_CONE = (Wanted("cube", "red", 1), Wanted("cone", "blue", 1))


@pytest.mark.parametrize(
    ("wanted", "seen", "reason"),
    [
        (A_CUBE, [thing("cube", "blue")], None),
        (A_CUBE, [thing("cube"), thing("cone")], None),  # what the prompt does not name is ignored
        (A_CUBE, [], "count: 0 of shape cube, not 1"),
        (A_CUBE, [thing("cone")], "count: 0 of shape cube, not 1"),
        (A_CUBE, [thing("cube"), thing("cube")], "count: 2 of shape cube, not 1"),
        (CUBE_AND_CONE, [thing("cone"), thing("cube")], None),
        (CUBE_AND_CONE, [thing("cube")], "count: 0 of shape cone, not 1"),
        (CUBE_AND_CONE, [thing("cube"), thing("cone"), thing("cone")], "count: 2 of shape cone, not 1"),
        (RED_CUBE, [thing("cube", "red")], None),
        (RED_CUBE, [thing("cube", "blue")], "colour: cube in blue, not red"),
        (RED_CUBE, [thing("cube", "red"), thing("cube", "blue")], "count: 2 of shape cube, not 1"),
        (THREE_RED_CUBES, [thing("cube")] * 3, None),
        (THREE_RED_CUBES, [thing("cube")] * 2, "count: 2 of shape cube, not 3"),
        (THREE_RED_CUBES, [thing("cube")] * 4, "count: 4 of shape cube, not 3"),
        (
            THREE_RED_CUBES,
            [thing("cube"), thing("cube", "pink"), thing("cube")],
            "colour: cube in pink and red and red, not red",
        ),
        (RED_CUBE_BLUE_CONE, [thing("cone", "blue"), thing("cube", "red")], None),
        (
            RED_CUBE_BLUE_CONE,
            [thing("cone", "red"), thing("cube", "blue")],
            "colour: cube in blue, not red",
        ),
        ((Wanted("cube", "red", 1), Wanted("cube", None, 1)), [thing("cube"), thing("cube", "blue")], None),
        (
            (Wanted("cube", "red", 1), Wanted("cube", "blue", 1)),
            [thing("cube", "red"), thing("cube", "red")],
            "colour: cube in red and red, not blue",
        ),
    ],
)
def test_a_picture_passes_only_with_exactly_what_was_asked_for(wanted, seen, reason):
    verdict = judge(wanted, None, seen)
    assert verdict.reason == reason
    assert verdict.passed == (reason is None)


@pytest.mark.parametrize(
    ("x", "y", "relations"),
    [
        (20, 50, {"left of"}),
        (80, 50, {"right of"}),
        (50, 20, {"above"}),  # y points down
        (50, 80, {"below"}),
        (10, 10, {"left of", "above"}),
        (50, 50, set()),
        (47, 50, set()),  # 3 pixels are within a tenth of both widths
        (45, 50, set()),  # 5 pixels are 1 beyond, less than half of the way
        (41, 50, {"left of"}),
        (20, 38, {"left of"}),
    ],
)
def test_a_direction_needs_a_margin_and_half_of_the_distance(x, y, relations):
    first, second = thing("cube", x=x, y=y), thing("cone", x=50, y=50)
    assert directions(first.box, second.box) == relations
    for relation in ("left of", "right of", "above", "below"):
        verdict = judge(CUBE_AND_CONE, relation, [second, first])
        assert verdict.passed == (relation in relations)
        if not verdict.passed:
            assert verdict.reason.startswith("position: cube ")
            assert verdict.reason.endswith(f"cone, not {relation}")


def test_a_position_prompt_fails_on_colour_before_place():
    seen = [thing("cube", "red", x=10), thing("cone", "green", x=80)]
    assert judge(RED_CUBE_BLUE_CONE, "left of", seen).reason == "colour: cone in green, not blue"


@pytest.mark.parametrize(
    ("task", "wanted", "relation", "message"),
    [
        ("size", A_CUBE, None, "task 'size' is none of one_object"),
        (None, A_CUBE, None, "task None"),
        ("colours", (), None, "no object"),
        ("colours", (Wanted("car", "red", 1),), None, "shape 'car'"),
        ("colours", (Wanted("cube", "grey", 1),), None, "colour 'grey'"),
        ("counting", (Wanted("cube", "red", 0),), None, "count 0"),
        ("position", CUBE_AND_CONE, "behind", "relation 'behind' is none of left of"),
        ("position", CUBE_AND_CONE, None, "needs a relation"),
        ("position", A_CUBE, "left of", "two single objects"),
        ("position", (Wanted("cube", None, 2), Wanted("cone", None, 1)), "left of", "two single objects"),
        ("position", (Wanted("cube", "red", 1), Wanted("cube", "blue", 1)), "left of", "two single"),
    ],
)
def test_what_cannot_be_judged_is_refused(task, wanted, relation, message):
    with pytest.raises(ValueError, match=message):
        check_wanted(task, wanted, relation)


def test_the_truth_of_a_scene_passes_its_own_prompt_and_fails_most_near_misses():
    for task in TASKS:
        scenes = sample_scenes(77, 6, "heldout", task)
        rendered = render(pack(scenes), (96, 96))
        for row, scene in enumerate(scenes):
            prompt, truth = task_prompt(scene), ground_truth(scene, rendered, row)
            check_wanted(prompt.task, prompt.wanted, prompt.relation)
            assert judge(prompt.wanted, prompt.relation, truth) == judge(prompt.wanted, None, truth)
            assert judge(prompt.wanted, prompt.relation, truth).passed
            near = near_misses(prompt)
            assert near
            assert not any(judge(miss.wanted, miss.relation, truth).passed for miss in near)


def test_a_task_scores_the_part_that_passed_with_an_error_over_prompts():
    score = task_score({"a": [True, True], "b": [False, False], "c": [True, False]})
    assert (score.images, score.prompts, score.score) == (6, 3, 0.5)
    # means 1, 0, 1/2: standard deviation 1/2 over three prompts
    assert score.standard_error == pytest.approx(0.5 / 3**0.5)
    assert task_score({"a": [True, False]}).standard_error is None
    with pytest.raises(ValueError, match="without pictures"):
        task_score({})


def test_pictures_of_one_prompt_do_not_shrink_the_error():
    once, often = [[1.0], [0.0], [1.0], [0.0]], [[1.0] * 9, [0.0] * 9, [1.0] * 9, [0.0] * 9]
    assert clustered_error(often, 0.5) == pytest.approx(clustered_error(once, 0.5))
    # for single pictures it is the plain standard error of a mean
    assert clustered_error(once, 0.5) == pytest.approx(torch.tensor(once).std().item() / 2)


def test_the_overall_score_is_the_mean_of_tasks_whatever_their_sizes():
    tasks = [TaskScore(100, 25, 0.9, 0.03), TaskScore(4, 2, 0.5, 0.04)]
    mean, error = overall_score(tasks)
    assert mean == pytest.approx(0.7)
    assert error == pytest.approx(0.025)
    assert overall_score([*tasks, TaskScore(1, 1, 1.0, None)])[1] is None
    with pytest.raises(ValueError, match="no task"):
        overall_score([])
