"""Self-study: a model questions an index, and a scaffold answers about it without reading it."""

import json
from dataclasses import replace

import pytest
import torch

from commands import run
from shoulders.answering.models import model_info
from shoulders.errors import DataError, UsageError
from shoulders.evidence import candidates
from shoulders.records import Answer
from shoulders.retrieval.index import Index
from shoulders.runs import self_study
from shoulders.runs.build import load_tasks, new_scaffold, new_teacher
from shoulders.runs.recipe import SELF_STUDY, with_overrides
from shoulders.runs.registry import recipe_named
from shoulders.scaffolds.deep_prompt import read
from shoulders.store.files import read_json

CITIES = ("Paris", "Rome", "Oslo", "Quito", "Lima", "Bern")


@pytest.fixture
def documents(tmp_path):
    """A file of several texts, and one of one."""
    rows = [{"title": f"On {city}", "text": f"{city} has {n} parks."} for n, city in enumerate(CITIES, start=11)]
    (tmp_path / "cities.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "short.txt").write_text("Cuzco has no parks.")
    return [tmp_path / "cities.jsonl", tmp_path / "short.txt"]


@pytest.fixture
def index(documents, tmp_path):
    Index.build(documents, tmp_path / "index")
    return tmp_path / "index"


@pytest.fixture
def values(lm):
    return [
        f"backbone.name={lm.name}", "backbone.dtype=float32", "scaffold.length=3", "suite.lengths.input=60",
        "suite.lengths.target=30", "training.batch_size=4", "training.steps=4", "training.save_every=4",
        "training.evaluate_every=4", "development.longest=3", "test.longest=3", "study.longest=8", "study.questions=3",
        "study.prompts=Ask:", "study.held_out=0.2",
    ]  # fmt: skip


@pytest.fixture
def asking(monkeypatch):
    """Samples that are questions, for those of a random model are not; the passages that were read for them."""
    asked = []

    def sample(questions, lm, scaffold, sampling, how):
        asked.extend(question.whole for question in questions)
        texts = ["How many parks?\nNo: what else?", "no question", f"What is {len(asked)}?"]
        return [[Answer(text, -1.0, 1.0) for text in texts] for _ in questions]

    monkeypatch.setattr(candidates, "sample", sample)
    return asked


@pytest.fixture
def recipe(values, index):
    return with_overrides(recipe_named("cartridge"), [*values, f"study.index={index}"])


def records(folder, split):
    return [json.loads(line) for line in (folder / SELF_STUDY / f"self-study.{split}.jsonl").read_text().splitlines()]


def test_the_questions_are_a_data_set_whose_passages_the_teacher_reads(recipe, lm, index, asking, tmp_path):
    studied = self_study.studied(recipe, lm, tmp_path / "run")
    passages = {f"passage:{one.id}": one for one in Index(index).store.passages()}
    assert len(passages) == len(CITIES) + 1
    found = {split: records(tmp_path / "run", split) for split in ("train", "dev")}
    rows = [*found["train"], *found["dev"]]
    assert {row["gold_passage_ids"][0] for row in rows} == set(passages)
    assert len(found["dev"]) == round(0.2 * len(rows))
    assert {row["question"] for row in rows} > {"How many parks?"}
    assert all(row["question"].endswith("?") and row["answers"][0] for row in rows)
    about = read_json(tmp_path / "run" / SELF_STUDY / "about.json")
    assert (about["study"]["seed"], about["study"]["prompts"], about["backbone"]) == (0, ["Ask:"], lm.fingerprint())
    assert about["found"]["left_out"]["without a question mark"] == len(passages)
    assert about["found"]["questions"] == len(rows)
    (task,) = load_tasks(studied.suite)
    teacher = new_teacher(studied, lm)
    example = task.example("train", "question", 0)
    (found,) = teacher.evidence.find([example.question])
    assert [one.text for one in found] == [passages[example.question.gold[0]].text]
    assert not studied.evidence.kind
    prompt = new_scaffold(studied.scaffold, lm, seed=0)
    first = read(lm, lm.ids(f"On Paris\n{passages['passage:1'].text}")[:3])
    torch.testing.assert_close(prompt.keys_values(1, torch.float32).layers, first.layers)


def test_an_interrupted_self_study_goes_on(recipe, lm, asking, tmp_path, monkeypatch):
    """And nothing is generated again, unless what it depends on has changed."""
    monkeypatch.setattr(self_study, "AT_ONCE", 1)

    def stop(done, _):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        self_study.studied(recipe, lm, tmp_path / "run", stop)
    assert not (tmp_path / "run" / SELF_STUDY / "about.json").exists()
    first = list(asking)
    assert len(first) == 2
    studied = self_study.studied(recipe, lm, tmp_path / "run")
    assert not set(asking[2:]) & set(first)
    whole, kept = len(asking), records(tmp_path / "run", "train")
    written = (tmp_path / "run" / SELF_STUDY / "about.json").stat().st_mtime_ns
    assert self_study.studied(recipe, lm, tmp_path / "run") == studied
    assert len(asking) == whole
    assert (tmp_path / "run" / SELF_STUDY / "about.json").stat().st_mtime_ns == written
    assert records(tmp_path / "run", "train") == kept
    self_study.studied(with_overrides(recipe, ["study.seed=1"]), lm, tmp_path / "run")
    assert len(asking) == 2 * whole


def test_a_cartridge_is_trained_from_files_and_asked_without_them(values, documents, asking, tmp_path):
    named = [part for file in documents for part in ("--index", file)]
    told = run("train", "cartridge", *values, *named, "--out", tmp_path / "run")
    assert "documents: 7 added" in told
    spec = model_info(str(tmp_path / "run")).spec
    assert (spec.evidence.kind, spec.wording) == ("", "Question: {query}\nAnswer:")
    alone = json.loads(run("ask", tmp_path / "run", "How many parks has Oslo?", "--json").splitlines()[-1])
    assert alone["passages"] == []
    beside = ["--index", tmp_path / "run" / "index", "--longest", "3"]
    reading = run("ask", tmp_path / "run", "How many parks has Oslo?", "--json", *beside).splitlines()[-1]
    assert "Oslo" in json.loads(reading)["passages"][0]["text"]
    generated = len(asking)
    run("train", "cartridge", *values, *named, "--out", tmp_path / "run", "--resume")
    assert len(asking) == generated


def test_what_cannot_be_studied_is_refused(recipe, values, lm, asking, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"suite\.source=self-study asks questions about an index, and none is named"):
        self_study.studied(replace(recipe, study=replace(recipe.study, index="")), lm, tmp_path)
    with pytest.raises(UsageError, match="closed_book studies no index"):
        run("train", "closed_book", *values[:3], "--index", tmp_path, "--out", tmp_path / "run")
    with pytest.raises(UsageError, match=r"study\.held_out is 1\.0: it is a share"):
        with_overrides(recipe, ["study.held_out=1"])
    with pytest.raises(UsageError, match=r"0 prompts \(study\.prompts\)"):
        with_overrides(recipe, ["study.prompts="])
    monkeypatch.setattr(candidates, "sample", lambda asked, *_: [[Answer("No.", -1.0, 1.0)] for _ in asked])
    with pytest.raises(DataError, match=r"found 0 questions to keep.*without a question mark"):
        self_study.studied(recipe, lm, tmp_path / "none")
    narrow = with_overrides(recipe, ["teacher.input=12"])
    with pytest.raises(DataError, match="with a passage that does not fit"):
        self_study.studied(narrow, lm, tmp_path / "narrow")
