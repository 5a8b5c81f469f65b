import math
from dataclasses import replace

import pytest

from shoulders.data.mixture import FOLDS, Mixture, fold_of, total_counts
from shoulders.data.tasks import TemplatedTask
from shoulders.data.templates import Template
from shoulders.engine.batches import Lengths
from shoulders.engine.inference import Answering, Sampling, sample
from shoulders.errors import UsageError
from shoulders.evidence.base import with_evidence
from shoulders.evidence.candidates import Candidates, FirstPass, majority, merge_samples
from shoulders.evidence.choice import EvidenceChoice
from shoulders.records import Answer, Passage, Question
from shoulders.runs.build import new_evidence
from shoulders.runs.recipe import Recipe
from shoulders.scaffolds.base import Bare
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary
from shoulders.store.cache import ValueCache
from shoulders.training.stream import Stream


def first_pass(lm, store=None, **changes):
    scaffold = SoftPrompt(from_vocabulary(lm)(3))
    how = Answering(longest=3)
    return replace(FirstPass(lm, scaffold, Sampling(), how, store or ValueCache(), "p1"), **changes)


class Fixed:
    """A sampler that always says the same."""

    def __init__(self, *answers):
        self.answers = answers

    def samples(self, questions, count):
        return [[Answer(text, logs, 0.0) for text, logs in self.answers][:count] for _ in questions]


def test_duplicates_are_put_together_and_the_most_probable_comes_first():
    some = [("Paris", -2.0), ("Rome", -0.5), ("paris ", -1.5), ("", -0.1), ("Rome", -0.5), ("Oslo", -9.0)]
    found = merge_samples([Answer(text, logs, 0.0) for text, logs in some])
    assert [passage.text for passage in found] == ["Rome", "paris ", "Oslo"]
    assert found[0].score == pytest.approx(-0.5)
    assert found[1].score == pytest.approx(math.log(math.exp(-2.0) + math.exp(-1.5)))
    assert merge_samples([]) == []


def test_the_majority_is_the_answer_sampled_most_often_in_any_spelling():
    some = [("Rome", -0.1), ("paris", -3.0), ("Paris ", -2.0), ("Oslo", -4.0), ("", -0.1), ("", -0.1), ("", -0.1)]
    drawn = [Answer(text, logs, 0.0) for text, logs in some]
    assert majority(drawn).text == "Paris "
    assert majority(drawn[:1] + drawn[3:4]).text == "Rome"  # one each: the more probable
    assert majority(drawn[4:]).text == ""


def test_candidates_follow_the_question_as_in_the_paper_or_come_before_it():
    source = Candidates(Fixed(("Mars", -1.0), ("Venus", -0.5)), 2, {})
    question = Question("Question: Which planet?\nAnswer:")
    (after,) = with_evidence([question], source)
    assert after.whole == "Question: Which planet?\nCandidates: Venus; Mars\nAnswer:"
    (before,) = with_evidence([question], replace(source, before=True))
    assert before == replace(question, evidence="Candidates: Venus; Mars\n")
    (shown,) = with_evidence([question], replace(source, probabilities=True))
    assert shown.whole == "Question: Which planet?\nCandidates: Venus (0.61); Mars (0.37)\nAnswer:"
    assert source.write(question, []) == question
    assert with_evidence([question], None) == [question]


def test_every_sample_is_a_candidate_and_the_order_is_the_models_own_probability(lm, questions):
    source = Candidates(first_pass(lm), 12, {})
    drawn = source.sampler.samples(questions, 12)
    for some, passages in zip(drawn, source.find(questions), strict=True):
        assert len(passages) > 1
        assert passages == sorted(passages, key=lambda passage: -passage.score)
        texts = [" ".join(passage.text.casefold().split()) for passage in passages]
        assert len(set(texts)) == len(texts)
        assert set(texts) == {" ".join(one.text.casefold().split()) for one in some if one.text}


def test_the_question_is_read_once_for_all_candidates(lm, questions, monkeypatch):
    rows = []
    states = type(lm).states

    def counting(self, embeds, *rest):
        if embeds.shape[1] > 1:
            rows.append(embeds.shape[0])
        return states(self, embeds, *rest)

    monkeypatch.setattr(type(lm), "states", counting)
    Candidates(first_pass(lm), 16, {}).find(questions)
    assert sum(rows) == len(questions)


def test_samples_are_drawn_once_and_kept_in_a_file(lm, questions, tmp_path, monkeypatch):
    path = str(tmp_path / "kept" / "answers.sqlite")
    first = Candidates(first_pass(lm, ValueCache(path)), 6, {}).find(questions)
    drawn = []
    monkeypatch.setattr("shoulders.evidence.candidates.sample", lambda asked, *rest: drawn.append(asked) or [])
    again = Candidates(first_pass(lm, ValueCache(path)), 6, {}).find(questions)
    assert again == first
    assert drawn == [[]]
    fewer = first_pass(lm, ValueCache(path)).samples(questions, 2)
    assert [len(some) for some in fewer] == [2] * len(questions)


def test_more_samples_begin_with_the_fewer_that_are_kept(lm, questions):
    store = ValueCache()
    few = first_pass(lm, store).samples(questions, 2)
    many = first_pass(lm, store).samples(questions, 5)
    assert [[one.text for one in some[:2]] for some in many] == [[one.text for one in some] for some in few]


def test_only_empty_candidates_are_refused(lm, questions):
    source = Candidates(Fixed(("", -0.1), ("", -0.1)), 2, {})
    with pytest.raises(UsageError, match=r"all 2 candidates of 4 questions are empty: train the first prompt longer"):
        source.find(questions)
    assert source.find([]) == []


def test_a_question_without_a_candidate_is_read_without(questions):
    """A single empty sample is chance: no reason to end a long run."""
    source = Candidates(Fixed(("", -0.1)), 1, {})
    assert source.find(questions[:1]) == [[]]
    assert source.write(questions[0], []) == questions[0]


def toys(lm, count, more=(), **settings):
    rows = [{"t": f"Question {n}", "a": "x"} for n in [*range(count), *more]]
    task = TemplatedTask(
        "toys", "Toys", {name: Template(name, name, "{{t}} " + name + " ||| {{a}}") for name in "vw"}, {"train": rows}
    )
    return Stream(Mixture([task], split="train", seed=0), lm, lengths=Lengths(), prompt_length=0, **settings)


class Named:
    """Evidence that says which prompt it is from."""

    def find(self, questions, fold=""):
        return [[Passage(fold or "all", 0.0)] for _ in questions]

    def write(self, question, passages):
        return replace(question, text=f"{question.text} [{passages[0].text}]")


def test_training_on_one_fold_leaves_out_the_other_in_all_wordings(lm):
    parts = {fold: toys(lm, 24, fold=fold) for fold in FOLDS}
    asked = {fold: {row.question.text for row in stream.take(2 * 24)} for fold, stream in parts.items()}
    assert len(asked["a"] | asked["b"]) == 48
    assert not asked["a"] & asked["b"]
    numbers = {fold: {text.split()[1] for text in texts} for fold, texts in asked.items()}
    assert not numbers["a"] & numbers["b"]
    assert total_counts(parts["a"].counts)["of the other fold"] > 0


def test_a_question_that_stands_in_several_records_is_in_no_half(lm):
    """A prompt of one half would have seen questions of the other."""
    for fold in FOLDS:
        stream = toys(lm, 24, more=[3] * 12, fold=fold)
        asked = {row.question.text.split()[1] for row in stream.take(40)}
        assert "3" not in asked
        assert total_counts(stream.counts)["in both folds"] > 0


def test_no_training_question_gets_candidates_of_a_prompt_that_saw_it(lm):
    """Evidence is asked for with the fold of the example; Candidates answer it from the prompt of the other fold."""
    stream = toys(lm, 24, evidence=Named())
    task, template = "toys", "v"
    seen = set()
    for row in stream.take(48):
        number = int(row.question.text.split()[1])
        example = stream.mixture.components[0].task.example("train", template, number)
        assert example.task == task
        assert row.question.text.endswith(f"[{fold_of(example)}]")
        seen.add(fold_of(example))
    assert seen == set(FOLDS)
    samplers = {fold: Fixed((f"not {fold}", -1.0)) for fold in FOLDS}
    source = Candidates(Fixed(("all", -1.0)), 1, samplers)
    for fold, wanted in (("a", "not a"), ("b", "not b"), ("", "all")):
        assert source.find([Question("x")], fold)[0][0].text == wanted


def test_a_recipes_candidates_come_from_its_prompts(lm, questions, tmp_path):
    made = {}
    for number, fold in enumerate(("", "a", "b")):
        made[fold] = SoftPrompt(from_vocabulary(lm, number)(3))
        folder = tmp_path / f"p1{fold}" / "best"
        made[fold].made_for(lm, {"suite": {"fold": fold}}).save_pretrained(folder)
    names = {fold: str(tmp_path / f"p1{fold}") for fold in made}
    choice = EvidenceChoice("candidates", names[""], (names["b"], names["a"]), count=4, longest=3)
    recipe = Recipe("p2", evidence=choice)
    source = new_evidence(recipe, lm, 3)
    for fold, prompt in (("", made[""]), ("a", made["b"]), ("b", made["a"])):
        wanted = sample(questions, lm, prompt, Sampling(4), Answering(longest=3))
        assert source.find(questions, fold) == [merge_samples(some) for some in wanted]
    assert new_evidence(Recipe("p2"), lm, 3) is None
    bare = new_evidence(replace(recipe, evidence=replace(choice, scaffold="bare", across=())), lm, 3)
    assert isinstance(bare.sampler.scaffold, Bare)


@pytest.mark.parametrize(
    ("across", "message"),
    [(("p1a",), "names 1 scaffolds"), (("p1a", "p1a"), "were trained on the folds 'a': train one with suite.fold=a")],
)
def test_cross_fitting_needs_a_prompt_of_each_half(lm, tmp_path, across, message):
    SoftPrompt(from_vocabulary(lm)(3)).made_for(lm, {"suite": {"fold": "a"}}).save_pretrained(tmp_path / "p1a")
    names = tuple(str(tmp_path / name) for name in across)
    with pytest.raises(UsageError, match=message):
        new_evidence(Recipe("p2", evidence=EvidenceChoice("candidates", names[0], names)), lm, 3)
    with pytest.raises(UsageError, match=r"evidence\.scaffold=RUN"):
        new_evidence(Recipe("p2", evidence=EvidenceChoice("candidates")), lm, 3)
