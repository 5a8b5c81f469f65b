"""What became of the examples, by data set: exact over what was read, whatever the number of processes or stops."""

import json
from collections import Counter
from types import SimpleNamespace

import pytest

from shoulders.data.mixture import Mixture, describe_counts, total_counts
from shoulders.data.readers import folder_task
from shoulders.data.tasks import SkipPolicy, TemplatedTask
from shoulders.data.templates import Template
from shoulders.engine.batches import Lengths
from shoulders.errors import BadRow, DataError, TemplateFailed
from shoulders.training import losses
from shoulders.training.losses import ExampleSource
from shoulders.training.stream import Stream
from tiny import NUMBERS

FINE, LONG, CUT, NOT_MEANT, FAILING = range(5)  # kinds of records, by what happens to them
JINJA = """
{%- if kind != 3 -%}{{ missing if kind == 4 else text }} ||| {{ "so " * 60 if kind == 1 else "so" }}{%- endif -%}
"""


def task(name, kinds):
    records = [{"text": f"{name} {n}?" + " why" * (200 if kind == CUT else 0), "kind": kind} for n, kind in kinds]
    return TemplatedTask(name, "Toys", {"w": Template("w", "id", JINJA)}, {"train": records})


@pytest.fixture
def stream(lm):
    def made(position=0, cap=30):
        kinds = [FINE, FINE, FINE, LONG, CUT, NOT_MEANT, FAILING]
        tasks = [task("a", enumerate(kinds * 4)), task("b", enumerate([FINE] * 50))]
        mixture = Mixture(tasks, split="train", seed=1, cap=cap, skip=SkipPolicy(failing=True))
        made = Stream(mixture, lm, lengths=Lengths(1000, 30), prompt_length=4)
        made.position = position
        return made

    return made


def test_an_epoch_is_counted_exactly_by_data_set(stream):
    found = stream()
    assert found.counts == {"a": {}, "b": {"capped": 20}}
    while found.position < len(found.mixture):
        found.take(1)
    assert len(found.mixture) == found.position == 28 + 30
    assert found.counts == {
        "a": {"read": 28, "discarded": 4, "truncated": 4, "not meant": 4, "template failed": 4},
        "b": {"read": 30, "capped": 20},
    }
    assert total_counts(found.counts)["read"] == 58
    assert set(describe_counts(found.counts).split(", ")) == {
        "20 capped", "4 discarded", "4 not meant", "4 template failed", "4 truncated"
    }  # fmt: skip
    assert describe_counts({"a": {"read": 3}}) == "none"


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_the_same_steps_and_count_the_same(stream, monkeypatch, processes):
    """The mixture does not depend on how many there are, nor on the sorting by length: a step is what it was."""
    whole = stream()
    steps = [[row.question.text for row in whole.take(6)] for _ in range(5)]
    sources = [ExampleSource(stream(), 6, 200, 4) for _ in range(processes)]
    for wanted in steps:
        found, terms = [], set()
        for number, source in enumerate(sources):
            state = SimpleNamespace(process_index=number, num_processes=processes)
            monkeypatch.setattr(losses, "PartialState", lambda state=state: state)
            step = source.step()
            found += [row.question.text for part in step.parts for row in part]
            terms.add(step.terms)
        assert Counter(found) == Counter(wanted)
        assert len(terms) == 1
    assert all(source.counts == whole.counts for source in sources)
    assert all(source.position == whole.position for source in sources)


@pytest.fixture
def broken(tmp_path):
    """20 records, the lines of two of which are broken."""
    lines = [json.dumps({"n": n}) for n in range(20)]
    lines[3], lines[11] = '{"n": ', "[]"
    (tmp_path / "templates.yaml").write_text(NUMBERS)
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    return folder_task(tmp_path)


def test_broken_lines_stop_or_are_counted_as_such(lm, broken):
    def read(skip):
        mixture = Mixture([broken], split="train", seed=0, skip=skip)
        found = Stream(mixture, lm, lengths=Lengths(), prompt_length=0)
        while found.position < len(mixture):
            found.take(1)
        return found.counts[broken.name]

    for skip in (SkipPolicy(), SkipPolicy(failing=True)):
        with pytest.raises(
            BadRow, match=r"train\.jsonl, line (4|12): .*; correct the line, or .*suite.skip_bad_rows=true"
        ):
            read(skip)
    assert read(SkipPolicy(bad_rows=True)) == {"read": 40, "bad row": 4}  # in two wordings


def test_skipping_broken_lines_skips_no_failing_template(lm):
    mixture = Mixture([task("a", [(0, FAILING)])], split="train", seed=0, skip=SkipPolicy(bad_rows=True))
    with pytest.raises(TemplateFailed, match="'missing' is undefined"):
        Stream(mixture, lm, lengths=Lengths(), prompt_length=0).take(1)


def test_a_file_of_broken_lines_only_is_refused_with_the_first(lm, tmp_path):
    (tmp_path / "templates.yaml").write_text(NUMBERS)
    (tmp_path / "train.jsonl").write_text("{\n{\n")
    mixture = Mixture([folder_task(tmp_path)], split="train", seed=0, skip=SkipPolicy(bad_rows=True))
    with pytest.raises(DataError, match=r"\(\d+ bad row\); the first: .*train\.jsonl, line \d"):
        Stream(mixture, lm, lengths=Lengths(), prompt_length=0).take(1)
