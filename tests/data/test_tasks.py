import gzip
import json

import pytest

from shoulders.data.lines import read_json_lines
from shoulders.data.readers import CLUSTERS, cluster_of, folder_task, metrics_of, open_suite, p3_task
from shoulders.data.tasks import RenderedTask, check_placement, class_labels, gold_answers, problems
from shoulders.engine.batches import encode
from shoulders.errors import (
    BadRow,
    DataError,
    HubUnreachable,
    SourceNotFound,
    TemplateFailed,
    UnknownName,
    UsageError,
)
from shoulders.evaluation.metrics import ACCURACY, EM, F1, ROUGE_L, metrics_for
from shoulders.paper.recipes import T0PP
from shoulders.records import Placement, Question

TEMPLATES = """
templates:
  a: !Template
    answer_choices: null
    id: aaaaaaaa
    jinja: "{{question}} ||| {{answers[0]}}"
    metadata: !TemplateMetadata {metrics: [Squad], original_task: true}
    name: ask
  b: !Template
    answer_choices: null
    id: bbbbbbbb
    jinja: "Q: {{question}} ||| {{answers[0]}}"
    metadata: !TemplateMetadata {metrics: [Squad], original_task: true}
    name: ask
"""
ROWS = [{"question": "2+2?", "answers": ["4", "four"]}, {"question": "1+1?", "answers": ["2"]}]


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "sums"
    place.mkdir()
    (place / "templates.yaml").write_text(TEMPLATES)
    (place / "card.json").write_text(json.dumps({"name": "sums", "cluster": "Closed-book QA"}))
    with gzip.open(place / "train.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in ROWS)
    (place / "test.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    return place


def test_a_task_folder_is_read(folder):
    task = folder_task(folder)
    assert (task.name, task.cluster) == ("sums", "Closed-book QA")
    assert task.wordings == ("ask", "ask bbbbbbbb")
    assert task.rows("train", "ask") == 2
    example = task.example("train", "ask", 0)
    assert (example.question.text, example.target, example.references) == ("2+2?", "4", ("4", "four"))
    with pytest.raises(UnknownName, match="called 'validation'"):
        task.rows("validation", "ask")


def test_suites_are_named_by_folder(folder):
    assert [task.name for task in open_suite(str(folder.parent))] == ["sums"]
    assert [task.name for task in open_suite(str(folder))] == ["sums"]
    with pytest.raises(UnknownName, match="called 'sum': did you mean 'sums'"):
        open_suite(str(folder.parent), ["sum"])
    with pytest.raises(SourceNotFound, match="no suite folder"):
        open_suite("nowhere")
    empty = folder / "empty"
    empty.mkdir()
    with pytest.raises(SourceNotFound, match="contains no task folder"):
        open_suite(str(empty))


def test_a_broken_line_is_named(folder):
    (folder / "train.jsonl.gz").unlink()
    path = folder / "train.jsonl"
    path.write_text('{"question": "a", "answers": ["b"]}\n\n{"question": \n')
    task = folder_task(folder)
    assert task.example("train", "ask", 0).target == "b"
    with pytest.raises(BadRow, match=r"train\.jsonl, line 3: Expecting value.*suite.skip_bad_rows=true"):
        task.example("train", "ask", 1)
    path.write_text("[1]\n")
    with pytest.raises(DataError, match="line 1: not a JSON object but list"):
        list(read_json_lines(path))


def test_a_truncated_archive_is_named(folder):
    path = folder / "train.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-6])
    with pytest.raises(DataError, match=r"train\.jsonl\.gz: Compressed file ended"):
        folder_task(folder).rows("train", "ask")


def test_class_labels_are_the_choices_that_stay_the_same():
    def table(choices):
        return {"train": [p3_row("q", some[0], some) for some in choices]}

    fixed, varying = [["yes", "no"]] * 9, [["a", "b"], ["c", "d"]]
    tasks = [
        RenderedTask("set", "Other", {"w": table(fixed), "v": table(varying), "u": table([["no", "maybe"]])}),
        RenderedTask("open", "Other", {"w": {"train": [p3_row("q", "a")]}}),
    ]
    assert class_labels(tasks) == ["yes", "no", "maybe"]
    assert class_labels(tasks[1:]) == []


@pytest.mark.parametrize(
    ("record", "target", "golds"),
    [
        ({"answers": ["a", "b"]}, "a", ("a", "b")),
        ({"answers": {"text": ["a", "a", "b"], "answer_start": [1, 2, 3]}}, "b", ("a", "b")),
        ({"answer": {"aliases": ["a", "c"], "value": "a"}}, "c", ("a", "c")),
        ({"output": [{"answer": "yes"}, {"answer": "yeah"}]}, "yeah", ("yes", "yeah")),
        ({"answer": ["a"]}, "z", ("z",)),
        ({"answers": [1930, 1931, "later"]}, "1931", ("1930", "1931", "later")),
        ({"answer": {"value": "a", "aliases": ["c"]}}, "a", ("a", "c")),
        ({"output": [{"answer": "yes"}, {"provenance": []}]}, "yes", ("yes",)),
        ({"answers": [True], "answer": "a"}, "a", ("a",)),
        ({"label": 1}, "z", ("z",)),
    ],
)
def test_all_answers_of_a_record_count_as_right(record, target, golds):
    assert gold_answers(record, target) == golds


def p3_row(text, target, choices=None):
    """A row of the hub's schema: token ids, and the texts they were made of."""
    return {
        "inputs": [1, 2], "inputs_pretokenized": text, "targets": [3], "targets_pretokenized": target,
        "answer_choices": choices,
    }  # fmt: skip


def test_p3_is_read_by_its_schema(tmp_path):
    """bigscience/P3: one configuration for each data set and wording; here a local repository of the same schema."""
    names = ["toy_set_first", "toy_set_second", "toy_set_first_score_eval", "toy_other_first"]
    configs = []
    for name in names:
        rows = [p3_row(f"{name} {n}? ", f" {n}\n", ["0", "1", "2"] if "first" in name else None) for n in range(3)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        configs.append(f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}.jsonl\n")
    (tmp_path / "README.md").write_text("---\nconfigs:\n" + "".join(configs) + "---\n")
    task = p3_task("toy_set", str(tmp_path))
    assert isinstance(task, RenderedTask)
    assert task.wordings == ("first", "second")
    example = task.example("train", "first", 2)
    assert (example.question.text, example.target, example.choices) == ("toy_set_first 2?", "2", ("0", "1", "2"))
    assert task.example("train", "second", 1).choices is None
    assert set(task.tables["first"]["train"][0]) == {"inputs_pretokenized", "targets_pretokenized", "answer_choices"}
    assert task.tables["first"]["train"].cache_files  # in a file, not in memory
    with pytest.raises(SourceNotFound, match="no data set 'nothing'"):
        p3_task("nothing", str(tmp_path))
    (tmp_path / "toy_other_first.jsonl").write_text('{"inputs": "a"}\n')
    with pytest.raises(DataError, match="toy_other_first, train has no column 'inputs_pretokenized'"):
        p3_task("toy_other", str(tmp_path))


def test_rows_of_p3_that_cannot_be_right_are_named():
    """A target that is none of the choices, as a hidden label leaves it, and columns that hold nothing."""
    rows = [p3_row("q", "tool", ["tool", " game"]), p3_row("q", "utility", ["tool", "game"]),
            p3_row("q", "a", ["a", None]), p3_row(None, "a"), p3_row("q", "game", ["tool", " game"])]  # fmt: skip
    task = RenderedTask("toys", "Other", {"which": {"test": rows}})
    assert [task.example("test", "which", row).target for row in (0, 4)] == ["tool", "game"]
    assert task.example("test", "which", 3) is None
    said = r"template 'which' of task 'toys' on example test:1: its target 'utility' is not among its answer choices"
    with pytest.raises(TemplateFailed, match=rf"{said}.*suite\.skip_failing=true"):
        task.example("test", "which", 1)
    with pytest.raises(TemplateFailed, match="is empty"):
        task.example("test", "which", 2)
    (problem,) = problems(task)
    assert (problem.what, problem.count) == ("template failed", 2)


def test_annotated_ids_are_texts_in_any_task(folder):
    """Numbers, one alone, and what is none."""
    rows = [{**ROWS[0], "gold_passage_ids": ids} for ids in ([17, "a"], 17, "17", None, [True])]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = folder_task(folder)
    found = [task.example("test", "ask", row).question.gold for row in range(4)]
    assert found == [("17", "a"), ("17",), ("17",), ()]
    with pytest.raises(BadRow, match="example test:4 of task 'sums': `gold_passage_ids` is true, neither text nor"):
        task.example("test", "ask", 4)


def test_a_hugging_face_data_set_with_templates(folder, tmp_path):
    """Any data set that `datasets` loads; here a folder of files."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (task,) = open_suite(f"hub:{data}@{folder / 'templates.yaml'}")
    assert task.rows("train", "ask") == 2
    assert task.example("train", "ask", 1).target == "2"
    with pytest.raises(SourceNotFound, match="names no templates"):
        open_suite("hub:glue:sst2")


def test_without_a_network_the_hub_says_what_to_do(folder):
    with pytest.raises(HubUnreachable):
        open_suite("p3:super_glue_rte")
    with pytest.raises((HubUnreachable, SourceNotFound)):
        open_suite(f"hub:nobody/nothing@{folder / 'templates.yaml'}")


def test_a_task_names_its_evidence(folder):
    """Evidence ends with the field's text; what is read stays exactly what the template rendered."""
    (folder / "card.json").write_text(json.dumps({"name": "sums", "evidence": "passage"}))
    (folder / "templates.yaml").write_text(
        TEMPLATES.replace('"{{question}} |||', '"Read: {{passage}}\\nThen: {{question}} |||').replace(
            '"Q: {{question}} |||', '"{{question}} |||'
        )
    )
    rows = [
        {"passage": " Two and two make four. ", "question": "2+2?", "answers": ["4"]},
        {"passage": "", "question": "1+1?", "answers": ["2"]},
    ]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "train.jsonl.gz").unlink()
    task = folder_task(folder)
    assert task.evidence == "passage"
    question = task.example("test", "ask", 0).question
    assert (question.evidence, question.text) == ("Read:  Two and two make four.", " \nThen: 2+2?")
    assert question.whole == "Read:  Two and two make four. \nThen: 2+2?"
    assert task.example("test", "ask", 1).question == Question("Read: \nThen: 1+1?")  # there is no passage
    assert task.example("test", "ask bbbbbbbb", 0).question == Question("2+2?")  # it is not shown
    (folder / "card.json").write_text(json.dumps({"evidence": "pasage"}))
    with pytest.raises(UnknownName, match="called 'pasage': did you mean 'passage'"):
        folder_task(folder)


def test_an_infix_needs_evidence(folder):
    tasks = open_suite(str(folder))
    check_placement(tasks, Placement.PREFIX)
    with pytest.raises(UsageError, match=r'no task \(sums\) names its evidence: add "evidence": "FIELD"'):
        check_placement(tasks, Placement.INFIX)
    bundled = open_suite("bundled")
    assert {task.name for task in bundled if task.evidence} == {"fact_sheets", "fact_inference"}
    check_placement(bundled, Placement.INFIX)


def test_an_infix_stands_after_the_evidence(lm):
    """On the bundled suite an infix is another place than a prefix and, mostly, than a suffix."""
    for task in open_suite("bundled", ["fact_sheets", "fact_inference"]):
        for wording in task.wordings:
            example = task.example("train", wording, 0)
            row = encode(example.question, lm, example.target)
            passage = task.splits["train"][0][task.evidence]
            assert example.question.evidence.endswith(passage)
            assert 0 < row.slot(Placement.INFIX) <= row.slot(Placement.SUFFIX)


def test_p3_sets_have_the_clusters_of_the_papers_table_and_their_metrics():
    clusters = {name: cluster_of(name) for name in T0PP.split(",")}
    assert len(clusters) == 54
    assert "Other" not in clusters.values()
    assert set(clusters.values()) == set(CLUSTERS) - {"Natural language inference"}  # T0 holds it out
    assert [cluster for cluster, sets in CLUSTERS.items() for name in sets if cluster_of(name) != cluster] == []
    assert clusters["super_glue_wsc.fixed"] == "Coreference resolution"
    assert clusters["super_glue_wic"] == "Word sense disambiguation"
    assert metrics_for(metrics_of("xsum"), choices=False) == (ROUGE_L,)
    assert metrics_for(metrics_of("squad_v2"), choices=False) == (F1, EM)
    assert metrics_for(metrics_of("race_high"), choices=True) == (ACCURACY,)
    assert (cluster_of("toy_set"), metrics_of("toy_set")) == ("Other", ())


@pytest.mark.parametrize("source", ["p3:ag_news,trec", "hub:nobody/nothing@{templates}", "{folder}"])
def test_names_of_tasks_are_checked_in_every_suite(folder, source):
    """Before anything is fetched."""
    place = source.format(templates=folder / "templates.yaml", folder=folder)
    with pytest.raises(UnknownName, match="called 'nowhere'"):
        open_suite(place, ["nowhere"])


def test_two_tasks_of_one_name_are_refused(folder):
    """Their scores and counts would be one."""
    copy = folder.parent / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "card.json").write_text(json.dumps({"name": "sums"}))
    with pytest.raises(DataError, match=r"2 tasks of .* are called 'sums': name each once, or rename it in card\.json"):
        open_suite(str(folder.parent))


def test_the_evidence_of_a_card_is_checked_whatever_the_first_line(folder):
    (folder / "train.jsonl.gz").unlink()
    (folder / "train.jsonl").write_text("{\n")
    (folder / "card.json").write_text(json.dumps({"evidence": "question"}))
    assert folder_task(folder).evidence == "question"
