import gzip
import json

import pytest

from shoulders.data.readers import open_suite
from shoulders.errors import BadRow, DataError, SourceNotFound, UnknownName


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_files_of_questions_are_a_task_whose_every_answer_counts(tmp_path):
    write(tmp_path / "trivia.train.jsonl", {"question": "Who?", "answers": ["Ann", "A."], "answer": "Ann Lee"})
    write(tmp_path / "trivia.dev.jsonl", {"question": "Where?", "answers": ["Rome", "Roma"]})
    with gzip.open(tmp_path / "trivia.test.jsonl.gz", "wt") as lines:
        lines.write(json.dumps({"question": "When?", "answer": "now"}))
    write(tmp_path / "other.validation.jsonl", {"question": "Why?", "answers": ["so"]})
    task, other = open_suite(f"qa:{tmp_path}/trivia,{tmp_path}/other")
    assert (task.name, other.name) == ("trivia", "other")
    assert task.split_names("question") == ("train", "validation", "test")
    example = task.example("validation", "question", 0)
    assert example.question.whole == "Question: Where?\nAnswer:"
    assert example.question.query == "Where?"  # what passages are searched for by
    assert (example.target, example.references) == ("Rome", ("Rome", "Roma"))
    taught = task.example("train", "question", 0)
    assert (taught.target, taught.references) == ("Ann Lee", ("Ann Lee", "Ann", "A."))
    assert task.example("test", "question", 0).references == ("now",)
    assert other.split_names("question") == ("validation",)
    assert [one.name for one in open_suite(f"qa:{tmp_path}/trivia,{tmp_path}/other", ["other"])] == ["other"]


def test_what_is_missing_or_broken_is_named(tmp_path):
    with pytest.raises(SourceNotFound, match=r"no questions at .*/none': there is no none\.train\.jsonl"):
        open_suite(f"qa:{tmp_path}/none")
    write(tmp_path / "a.train.jsonl", {"question": "Who?", "answers": ["Ann"]}, {"question": " ", "answers": ["x"]})
    (task,) = open_suite(f"qa:{tmp_path}/a")
    with pytest.raises(BadRow, match=r"a\.train\.jsonl, line 2: it needs a `question`;.*suite.skip_bad_rows=true"):
        task.example("train", "question", 1)
    write(tmp_path / "b.train.jsonl", {"question": "Who?", "answers": False}, {"question": "Who?", "answer": None})
    (task,) = open_suite(f"qa:{tmp_path}/b")
    with pytest.raises(BadRow, match="line 1: `answers` is false, neither text nor number"):
        task.example("train", "question", 0)
    with pytest.raises(BadRow, match="line 2: it needs a `question` and its `answers`"):
        task.example("train", "question", 1)
    with pytest.raises(DataError, match=r"2 tasks of .* are called 'a': name each once"):
        open_suite(f"qa:{tmp_path}/a,{tmp_path}/a")
    write(tmp_path / "c.train.jsonl", {"question": "Who?", "answers": ["Ann"]})
    with pytest.raises(UnknownName, match="did you mean 'c'"):
        open_suite(f"qa:{tmp_path}/c", ["cc"])
