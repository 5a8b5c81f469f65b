"""`AnswerSpec`: checked when it is made and when it is read."""

import math

import pytest

from shoulders.answering.calibration import Threshold
from shoulders.answering.spec import LONGEST, AnswerSpec, spec_from_json
from shoulders.data.readers import QUESTION_WORDING
from shoulders.engine.batches import Lengths
from shoulders.errors import CorruptFile, UnknownName, UsageError
from shoulders.evidence.choice import EvidenceChoice
from shoulders.records import Question
from shoulders.runs.build import answer_spec
from shoulders.runs.recipe import with_overrides
from shoulders.runs.registry import recipe_named

WORDED = AnswerSpec(QUESTION_WORDING)


def test_a_question_is_worded_once():
    worded = Question("Question: Who?\nAnswer:", query="Who?")
    for asked in ("Who?", Question("Who?"), worded.text, worded, "Question: Who?"):
        assert WORDED.question(asked) == worded
    others = Question("Is it so that who?", "Some text. ", query="Who?")
    assert WORDED.question(others) == others  # in a wording of its own
    assert WORDED.question(Question("Who?", "Some text. ")).whole == f"Some text. {worded.text}"
    assert WORDED.question(" ") == Question(" ")
    assert AnswerSpec().question("Who?") == Question("Who?")


def test_saved_and_read_is_unsaved():
    choice = EvidenceChoice("candidates", "runs/p1", ("a", "b"), count=3, temperature=0.5)
    for spec in (
        AnswerSpec(),
        AnswerSpec(QUESTION_WORDING, choice, Lengths(100, 20), 20),
        AnswerSpec(threshold=Threshold(0.25, math.inf)),
    ):
        assert spec_from_json(spec.as_json(), "x") == spec
    assert spec_from_json({}, "x") == AnswerSpec()


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (
            {"longest": "many"},
            CorruptFile,
            r"the answer settings of runs/x cannot be read \(longest takes a whole number, got 'many'\)",
        ),
        ({"evidence": {"passages": []}}, CorruptFile, r"\(passages takes a whole number, got \[\]\)"),
        ({"evidence": None}, CorruptFile, "the answer settings of runs/x cannot be read"),
        (None, CorruptFile, "the answer settings of runs/x cannot be read"),
        ({"longest": 0}, UsageError, "must be at least 1 token, got 0"),
        ({"wording": "Who?"}, UsageError, r"the wording 'Who\?' has 0 \{query\}: it needs one"),
        ({"wording": "{query} {query}"}, UsageError, r"has 2 \{query\}"),
        ({"evidence": {"kind": "retrieve"}}, UnknownName, "did you mean 'retrieved'"),
    ],
)
def test_what_does_not_fit_is_refused(content, error, said):
    with pytest.raises(error, match=said):
        spec_from_json(content, "runs/x")


def test_a_recipe_is_asked_as_it_is_measured():
    recipe = with_overrides(recipe_named("reader"), ["evidence.index=facts", "evidence.kind=oracle", "test.longest=50"])
    spec = answer_spec(recipe)
    assert (spec.wording, spec.longest, spec.evidence) == (QUESTION_WORDING, 50, recipe.evidence)
    assert spec.lengths == Lengths(recipe.suite.lengths.input, 50)  # as long as whatever is generated
    assert answer_spec(recipe_named("bundled_soft_prompt")).wording == "{query}"
    asked = spec.with_options("others", 70)
    assert (asked.evidence.kind, asked.evidence.index, asked.longest) == ("retrieved", "others", 70)
    assert asked.lengths.target == 70


def test_what_never_read_reads_any_index():
    spec = AnswerSpec(longest=3).with_options("facts")
    assert (spec.wording, spec.longest, spec.lengths) == (QUESTION_WORDING, LONGEST, Lengths(512, LONGEST))
    assert (spec.evidence.kind, spec.evidence.index) == ("retrieved", "facts")
    assert AnswerSpec(longest=3).with_options() == AnswerSpec(longest=3)
