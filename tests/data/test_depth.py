"""Tasks of depth: their answers are right, their texts alike, their examples the same each time."""

import re

import pytest

from shoulders.data.readers import open_suite
from shoulders.errors import UnknownName, UsageError


def examples(name, split="test", count=20):
    (task,) = open_suite(f"depth:{name}")
    return [task.example(split, "question", row) for row in range(count)]


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_hops_are_followed_in_the_text(depth):
    for one in examples(f"hops-{depth}"):
        sees = dict(re.findall(r"(\w+) sees (\w+)\.", one.question.text))
        at = re.search(rf"Who is {depth} from (\w+)\?", one.question.text)[1]
        for _ in range(depth):
            at = sees[at]
        assert len(sees) == 8
        assert one.references == (at,)


@pytest.mark.parametrize("depth", [0, 3, 5])
def test_sums_have_their_longest_run_of_carries(depth):
    for example in examples(f"carries-{depth}"):
        one, other = re.search(r"(\d{6}) plus (\d{6})", example.question.text).groups()
        assert example.target == str(int(one) + int(other))
        runs, carry = "", 0
        for low, high in zip(reversed(one), reversed(other), strict=True):
            carry = int(low) + int(high) + carry > 9
            runs += str(int(carry))
        assert max(map(len, runs.split("0"))) == depth


def test_facts_two_steps_away_are_those_one_step_away():
    near, far = examples("facts-1"), examples("facts-2")
    assert [one.references for one in near] == [one.references for one in far]
    assert all("the country of" in two.question.text for two in far)
    assert not any("the country of" in one.question.text for one in near)


def test_depth_changes_the_question_alone_and_splits_differ():
    near, far = examples("hops-1"), examples("hops-2")
    assert [one.question.text.replace("is 1 from", "is 2 from") for one in near] == [two.question.text for two in far]
    assert examples("hops-2") == far
    assert not {one.question.text for one in examples("hops-2", "train")} & {two.question.text for two in far}


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("jumps-2", UnknownName, "kind of task of depth called 'jumps'"),
        ("hops", UnknownName, "kind of task of depth called 'hops'"),
        ("hops-8", UsageError, "the depth of hops is from 1 to 7"),
        ("facts-3", UsageError, "the depth of facts is from 1 to 2"),
    ],
)
def test_what_is_no_task_is_refused(name, error, message):
    with pytest.raises(error, match=message):
        open_suite(f"depth:{name}")
