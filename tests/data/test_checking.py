import json

import pytest

from shoulders.data.readers import folder_task, open_suite
from shoulders.data.tasks import Problem, problems
from tiny import NUMBERS


@pytest.fixture
def numbers(tmp_path):
    """A task folder called "numbers", of lines by split."""

    def made(**splits):
        folder = tmp_path / "numbers"
        folder.mkdir(exist_ok=True)
        (folder / "templates.yaml").write_text(NUMBERS)
        for split, rows in splits.items():
            lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
            (folder / f"{split}.jsonl").write_text("\n".join(lines))
        return folder

    return made


def test_a_suite_of_nothing_wrong():
    assert [found for task in open_suite("bundled", ["kind_of"]) for found in problems(task)] == []


def test_every_kind_of_problem_is_found_with_its_first(numbers):
    train = [{"n": 1, "id": "a"}, {"n": 2, "id": "b"}, '{"n":', {"n": 3, "id": "a"}, {"m": 4}, {"n": 5, "id": "a"}]
    folder = numbers(train=[*train, "[]"], test=[{"n": 1, "id": "a"}, {"n": 2, "id": "b"}])
    found = list(problems(folder_task(folder)))
    assert [(one.split, one.what, one.count) for one in found] == [
        ("train", "template failed", 1), ("train", "template failed", 1), ("train", "bad row", 2),
        ("train", "repeated id", 2),
    ]  # fmt: skip
    assert "template 'choose' of task 'numbers' on example train:4: it fails: UndefinedError: 'n'" in found[0].first
    assert "template 'count'" in found[1].first
    assert "train.jsonl, line 3: Expecting value" in found[2].first
    assert found[3] == Problem(
        "numbers", "train", "repeated id", 2, "id 'a' of record train:0 is also that of train:3"
    )  # the same id in another split is none


def test_at_the_command_line(shoulders, refused, numbers):
    folder = numbers(train=[{"n": n, "id": n} for n in range(5)])
    code, printed, error = shoulders("check", folder)
    assert (code, error) == (0, "")
    assert printed == "numbers: 5 train; 2 templates\nnothing is wrong\n"
    numbers(test=[{"n": 1, "id": 7}, {"n": 2, "id": 7}])
    assert "1 repeated id" in refused("check", folder, "numbers")
    assert "did you mean 'numbers'" in refused("check", folder, "number")
