"""Questions as data sets publish them, and what may stand in their fields."""

import gzip
import json
import math
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shoulders.data.checking import find_problems
from shoulders.data.formats import id_of, ids_of, question_record, read_qrels, texts_of
from shoulders.data.lines import JsonArray
from shoulders.data.readers import folder_task, open_suite
from shoulders.errors import BadRow, DataError, SourceNotFound, UnknownName, UsageError
from shoulders.evaluation.protocol import EvaluationPlan, scored
from tiny import NUMBERS

SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "Bridges",
            "paragraphs": [
                {
                    "context": "Kolb built it in 1931.",
                    "qas": [
                        {
                            "id": "a1", "question": "Who built it?", "is_impossible": False,
                            "answers": [{"text": "Kolb", "answer_start": 0}, {"text": "Kolb", "answer_start": 0}],
                        },
                        {"id": "a2", "question": "Who paid?", "is_impossible": True, "answers": []},
                    ],
                },
                {"context": "", "qas": [{"id": "a3", "question": "When?", "answers": [{"text": "1931"}]}]},
            ],
        }
    ],
}  # fmt: skip
TRIVIA = {
    "Data": [
        {
            "Answer": {
                "Value": "Harbour Bridge", "Aliases": ["Old Bridge", "", "Harbour Bridge"],
                "NormalizedAliases": ["old bridge"], "HumanAnswers": ["the bridge of the harbour"],
            },
            "Question": "Which bridge opened in 1931?", "QuestionId": "q_1", "EntityPages": [],
        }
    ],
    "Version": 1.0,
}  # fmt: skip
WEB = [
    {"url": "u/1", "targetValue": '(list (description "Ada Kolb") (description Bo))', "utterance": "who built it?"},
    {"url": "u/2", "targetValue": '(list (description "The \\"Old\\" (1931)"))', "utterance": "its name?"},
    {"url": "u/3", "targetValue": "(list )", "utterance": "nothing?"},
]
HOTPOT = [{"_id": "5a", "question": "Which?", "answer": "yes", "supporting_facts": [["A", 0]], "type": "comparison"}]
DPR = [
    {
        "dataset": "nq_dev", "question": "who built it", "answers": ["Ada Kolb", "Kolb"],
        "positive_ctxs": [{"passage_id": "17", "title": "B", "text": "..."}, {"psg_id": 18}, {"title": "no id"}],
        "negative_ctxs": [], "hard_negative_ctxs": [],
    }
]  # fmt: skip


def written(path, content):
    path.parent.mkdir(exist_ok=True, parents=True)
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def read(task, split, row=0):
    found = task.example(split, "question", row)
    return found.question.text.removeprefix("Question: ").removesuffix("\nAnswer:"), found.references


@pytest.mark.parametrize(
    ("name", "content", "split", "question", "answers", "extra"),
    [
        ("dev-v1.1.json", SQUAD, "validation", "Who built it?", ("Kolb",), {"id": "a1"}),
        ("unfiltered-web-train.json", TRIVIA, "train", "Which bridge opened in 1931?",
         ("Harbour Bridge", "Old Bridge", "the bridge of the harbour"), {"id": "q_1"}),
        ("webquestions.examples.test.json", WEB, "test", "who built it?", ("Ada Kolb", "Bo"), {"id": "u/1"}),
        ("hotpot_dev_distractor_v1.json.gz", HOTPOT, "validation", "Which?", ("yes",), {"id": "5a"}),
        ("biencoder-nq-dev.json", DPR, "validation", "who built it", ("Ada Kolb", "Kolb"),
         {"gold_passage_ids": ["17", "18"]}),
        ("NQ-open.dev.jsonl", '{"question": "who", "answer": ["Ada", "Kolb"]}\n', "validation", "who",
         ("Ada", "Kolb"), {}),
        ("kilt-dev.jsonl", '{"id": 3, "input": "who", "output": [{"answer": "Ada"}, {"provenance": []}]}\n',
         "validation", "who", ("Ada",), {"id": "3"}),
    ],
)  # fmt: skip
def test_published_files_are_read_by_their_names(tmp_path, name, content, split, question, answers, extra):
    """The file named in full, and the folder that it is in."""
    path = written(tmp_path / "set" / name, content)
    for source in (path, path.parent):
        (task,) = open_suite(f"qa:{source}")
        assert task.split_names("question") == (split,)
        assert read(task, split) == (question, answers)
        record = task.splits[split][0]
        assert {key: record[key] for key in extra} == extra
        assert record["answer"] == answers[0]
        assert task.name == source.name
    (task,) = open_suite(f"qa:{path.parent}/{re.split('[._-](dev|train|test)[._-]', name)[0]}" if name[:3] != "dev"
                         else f"qa:{path}")  # fmt: skip
    assert task.split_names("question") == (split,)


def test_a_question_that_nobody_can_answer_is_refused_or_counted(tmp_path):
    (task,) = open_suite(f"qa:{written(tmp_path / 'dev-v2.0.json', SQUAD)}")
    assert task.rows("validation", "question") == 3
    with pytest.raises(BadRow, match=r"dev-v2\.0\.json, record 2: `answers`: .* impossible"):
        task.example("validation", "question", 1)
    assert read(task, "validation", 2) == ("When?", ("1931",))
    (problem,) = find_problems(task)
    assert (problem.what, problem.count) == ("bad row", 1)


def test_web_questions_answers_are_descriptions(tmp_path):
    (task,) = open_suite(f"qa:{written(tmp_path / 'train.json', WEB)}")
    assert read(task, "train", 1)[1] == ('The "Old" (1931)',)
    with pytest.raises(BadRow, match="record 3: `targetValue` contains no"):
        task.example("train", "question", 2)


def test_trivia_qa_is_scored_as_its_own_script_does(tmp_path):
    (file,) = open_suite(f"qa:{written(tmp_path / 'a' / 'web-dev.json', TRIVIA)}")
    line = '{"question": "q", "answer": {"value": "x", "aliases": ["x"]}}'
    (lines,) = open_suite(f"qa:{written(tmp_path / 'b.dev.jsonl', line).parent}/b")
    (other,) = open_suite(f"qa:{written(tmp_path / 'c' / 'dev.json', DPR)}")
    assert file.metrics("question") == lines.metrics("question") == ("Trivia QA",)
    assert other.metrics("question") == ("Accuracy",)


def test_files_that_leave_a_doubt_are_named(tmp_path):
    for kind in ("distractor", "fullwiki"):
        written(tmp_path / f"hotpot_dev_{kind}_v1.json", HOTPOT)
    for source in (tmp_path, tmp_path / "hotpot"):
        with pytest.raises(
            DataError, match=r"hotpot_dev_distractor_v1\.json and hotpot_dev_fullwiki_v1\.json in .*full"
        ):
            open_suite(f"qa:{source}")
    written(tmp_path / "x" / "questions.json", HOTPOT)
    with pytest.raises(SourceNotFound, match=r"there are no questions at .*: name yours, suite\.source=qa:"):
        open_suite(f"qa:{tmp_path}/x/questions.json")
    for name, content, said in (
        ("a", {"other": []}, "is no array of records, and has none in a field 'Data', 'data'"),
        ("b", '[{"question": "q", "answers": ["a"]}, {', "parse error|premature EOF"),
        ("c", "[1]", "record 1: not a JSON object but int"),
        ("d", "[]", "is empty"),
        ("e", '[{"question": "q", "answers": [NaN]}]', "invalid"),
    ):
        (task,) = open_suite(f"qa:{written(tmp_path / f'{name}-dev.json', content)}")
        with pytest.raises(DataError, match=said):
            task.example("validation", "question", 0)


def test_a_task_folder_may_hold_an_array(tmp_path):
    (tmp_path / "templates.yaml").write_text(NUMBERS)
    (tmp_path / "train.json").write_bytes(b"\xef\xbb\xbf" + json.dumps([{"n": 1}, {"n": 2}], indent=1).encode())
    task = folder_task(tmp_path)
    assert [task.example("train", "count", row).target for row in range(2)] == ["2", "3"]
    with pytest.raises(IndexError):
        JsonArray(tmp_path / "train.json", dict, {})[2]


# What is no answer, wherever it stands; and what is one, with the text that it is.
SCALARS = st.one_of(
    st.text().map(lambda text: (text, text.strip())),
    st.integers().map(lambda number: (number, str(number))),
    st.floats(allow_nan=False, allow_infinity=False).map(lambda number: (number, str(number))),
    st.just((None, "")),
)
LISTS = st.lists(SCALARS, max_size=4).map(lambda some: ([one for one, _ in some], [text for _, text in some]))
ANSWERS = st.one_of(
    SCALARS.map(lambda one: (one[0], [one[1]])),
    LISTS,
    LISTS.map(lambda some: ({"text": some[0], "answer_start": [0] * len(some[0])}, some[1])),
    LISTS.map(lambda some: ([{"answer": one} for one in some[0] if one is not None], some[1])),
    st.tuples(SCALARS, LISTS).map(
        lambda both: ({"value": both[0][0], "aliases": both[1][0]}, [both[0][1], *both[1][1]])
    ),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@given(ANSWERS, st.sampled_from(["answer", "answers"]))
@example(([12, "May", None], ["12", "May", ""]), "answer")
def test_answers_of_every_usual_shape_are_read_as_meant(shape, field):
    value, meant = shape
    texts = list(dict.fromkeys(text for text in meant if text))
    if texts:
        assert question_record({"question": "q", field: value})["answers"] == texts
    else:
        with pytest.raises(ValueError, match="answer"):
            question_record({"question": "q", field: value})


@pytest.mark.parametrize("empty", [None, "", [], {}, math.nan])
def test_an_empty_field_beside_a_full_one_is_as_good_as_none(empty):
    for full, other in (("answer", "answers"), ("answers", "answer")):
        found = question_record({"question": "q", full: ["a", "b"], other: empty})
        assert (found["answers"], found["answer"]) == (["a", "b"], "a")
    with pytest.raises(ValueError, match="it needs a `question` and its `answers`"):
        question_record({"question": "q", "answers": empty})


def texts_in(value):
    """Every text and number that stands in a value, as a person would read it."""
    if isinstance(value, dict | list):
        return {text for one in (value.values() if isinstance(value, dict) else value) for text in texts_in(one)}
    return (
        {str(value).strip()} - {""} if isinstance(value, str | float | int) and not isinstance(value, bool) else set()
    )


def refused(call, field):
    """Whether a call refuses what it is given, by the field's name."""
    try:
        call()
    except ValueError as error:
        return f"`{field}`" in str(error)
    return False


@given(JSON)
@example({"answer": [["a", "b"]]})
@example(["12 May 1931", ["May 1931"]])
@example(math.inf)
def test_any_other_value_is_refused_by_its_field_and_never_taught_as_python_writes_it(value):
    if not refused(lambda: texts_of(value, "answers"), "answers"):
        found = texts_of(value, "answers")
        assert found
        assert set(found) <= texts_in(value)


@given(JSON)
def test_any_question_is_a_text_or_refused(value):
    def read():
        return question_record({"question": value, "answers": ["a"]})["question"]

    assert refused(read, "question") or {read()} == texts_in(value)


@given(st.one_of(st.integers(), st.text(), st.none(), st.just(math.nan)), st.booleans())
@example(17, True)
def test_ids_are_texts_alone_or_in_a_list(value, pandas):
    """Whole numbers as pandas writes them beside missing ones are the same ids."""
    wanted = None if value is None or value != value else str(value).strip() or None
    given_as = float(value) if pandas and isinstance(value, int) and abs(value) < 1 << 53 else value
    assert id_of(given_as, "id") == wanted
    assert ids_of([given_as, given_as], "id") == ids_of(given_as, "id") == ((wanted,) if wanted else ())


@pytest.mark.parametrize("value", [True, [1], {"a": 1}, math.inf])
def test_ids_that_are_none_are_refused(value):
    with pytest.raises(ValueError, match="`id` is "):
        id_of(value, "id")
    with pytest.raises(ValueError, match="`gold_passage_ids`"):
        question_record({"question": "q", "answers": ["a"], "gold_passage_ids": [value, "1"]})


def test_a_folder_of_beir_is_questions_with_documents(tmp_path):
    queries = [{"_id": n, "text": f"query {n}", "metadata": {}} for n in range(4)]
    written(tmp_path / "toy" / "queries.jsonl", "".join(json.dumps(one) + "\n" for one in queries))
    written(tmp_path / "toy" / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore\n1\td 1\t2\n1\td2\t0\n3\td3\t1\n")
    written(tmp_path / "toy" / "qrels" / "dev.tsv", "0 0 d4 1\n")
    (task,) = open_suite(f"qa:{tmp_path}/toy")
    assert task.split_names("question") == ("validation", "test")
    assert (task.rows("test", "question"), task.rows("validation", "question")) == (2, 1)
    found = [task.example("test", "question", row) for row in range(2)]
    assert [(one.question.text, one.question.gold) for one in found] == [
        ("Question: query 1\nAnswer:", ("d 1",)), ("Question: query 3\nAnswer:", ("d3",))
    ]  # fmt: skip
    assert found[0].references == ()
    assert list(find_problems(task)) == []
    with pytest.raises(UsageError, match="task 'toy' has relevant documents for its questions, but no answers"):
        scored([task], EvaluationPlan(split="test"), lambda examples: [])
    with pytest.raises(UnknownName, match="did you mean 'test'"):
        task.rows("tst", "question")
    written(tmp_path / "toy" / "qrels" / "test.tsv", "9\td1\t1\n")
    with pytest.raises(
        DataError, match=r"test\.tsv has judgements for the query '9', which is not in .*queries\.jsonl"
    ):
        open_suite(f"qa:{tmp_path}/toy")


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(-1, 3)), max_size=8), st.booleans())
def test_judgements_are_read_in_both_forms(tmp_path_factory, judged, trec):
    file = tmp_path_factory.getbasetemp() / "qrels.tsv"
    rows = [f"q{q} 0 d{d} {s}" if trec else f"q{q}\td{d}\t{s}" for q, d, s in judged]
    file.write_text("\n".join(rows if trec else ["query-id\tcorpus-id\tscore", *rows]))
    wanted = {f"q{q}": [f"d{d}" for other, d, s in judged if other == q and s > 0] for q, _, s in judged if s > 0}
    assert read_qrels(file) == wanted


@pytest.mark.parametrize("line", ["q1", "q1 d1", "q1 0 d1 many", "a b c d e"])
def test_a_judgement_that_is_none_is_named(tmp_path, line):
    written(tmp_path / "test.tsv", f"q1\td1\t1\n\n{line}\n")
    with pytest.raises(BadRow, match=r"test\.tsv, line 3: not a query, a document and a score"):
        read_qrels(tmp_path / "test.tsv")
