import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shoulders.evaluation.metrics import (
    ACCURACY,
    BLEU_4,
    EM,
    F1,
    METRICS,
    ROUGE_L,
    TRIVIA_EM,
    TRIVIA_F1,
    exact_match,
    metrics_for,
    normalise,
    normalise_trivia,
    rouge_l,
    token_f1,
)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Eiffel Tower!", "eiffel tower"),
        ("an apple, a day", "apple day"),
        ("U.S.A.", "usa"),
        ("theatre", "theatre"),
        ("well-known", "wellknown"),
        ("“quoted”", "“quoted”"),  # only ASCII punctuation goes, as in the script
    ],
)
def test_normalisation_is_squads(text, normal):
    assert normalise(text) == normal


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("well-known", "well known"),  # a space stands for punctuation, where SQuAD's script has nothing
        ("U.S.A.", "u s"),  # and so the last letter is an article
        ("the_Beatles", "beatles"),
        ("\u2018Rock \u2019n\u2019 Roll\u00b4 `", "rock n roll"),
        ("\u201cquoted\u201d", "\u201cquoted\u201d"),
        ("A  theatre, an apple", "theatre apple"),
    ],
)
def test_normalisation_of_trivia_qa_is_its_own_scripts(text, normal):
    assert normalise_trivia(text) == normal


def test_trivia_qa_has_metrics_of_its_own():
    assert metrics_for(("Trivia QA",), choices=False) == (TRIVIA_EM, TRIVIA_F1)
    assert TRIVIA_EM.measure("well known", ["Well-Known"]) == (1.0,)
    assert EM.measure("well known", ["Well-Known"]) == (0.0,)
    assert TRIVIA_F1.measure("known", ["Well-Known"]) == (pytest.approx(2 / 3),)


NOTHING = st.text(st.sampled_from(string.punctuation + " \n"), max_size=3) | st.sampled_from(["the", "A", "an a"])


@given(NOTHING, st.lists(NOTHING | st.text(max_size=4), min_size=1, max_size=3), st.sampled_from([EM, TRIVIA_EM]))
@example("", [""], EM)
@example(" ", ["the", "!"], EM)
@example("A", ["a"], EM)
def test_a_gold_of_nothing_makes_nothing_right(prediction, golds, metric):
    """A text of articles and punctuation alone is itself and no other; an empty one is never right."""
    (right,) = metric.measure(prediction, golds)
    written = " ".join(prediction.lower().split())
    assert right == float(bool(written) and written in {" ".join(gold.lower().split()) for gold in golds})
    (f1,) = {EM: F1, TRIVIA_EM: TRIVIA_F1}[metric].measure(prediction, golds)
    assert f1 >= right
    assert f1 == 0 or written


def test_exact_match_takes_the_best_gold():
    assert exact_match("the Beatles.", ["Queen", "Beatles"]) == 1.0
    assert exact_match("Beatle", ["Beatles"]) == 0.0
    with pytest.raises(ValueError, match="at least one"):
        exact_match("x", [])


def test_token_f1_counts_tokens_with_their_number():
    assert token_f1("cat sat mat", ["cat mat"]) == pytest.approx(0.8)
    assert token_f1("cat cat", ["cat"]) == pytest.approx(2 / 3)
    assert token_f1("", ["cat"]) == 0.0
    assert token_f1("dog", ["cat", "the dog"]) == 1.0


def test_rouge_is_the_librarys():
    from rouge_score.rouge_scorer import RougeScorer

    found, gold = "the cats sat on a mat", "a cat sat upon the mat"
    wanted = RougeScorer(["rougeL"], use_stemmer=True).score(gold, found)["rougeL"].fmeasure
    assert rouge_l(found, ["something else", gold]) == wanted


def test_rouge_knows_the_latin_alphabet_only():
    """As the docstring says; another tokenizer would be another metric."""
    assert rouge_l("Париж", ["Париж"]) == 0.0


def test_corpus_bleu_is_the_librarys():
    import sacrebleu

    found = ["the cat sat on the mat", "it rains in Paris today", "no"]
    golds = [
        ["the cat is on the mat", "a cat sat on the mat"],
        ["it is raining in Paris today", "it rains"],
        ["no", "n"],
    ]
    rows = [BLEU_4.measure(text, some) for text, some in zip(found, golds, strict=True)]
    ours = BLEU_4.total([sum(column) for column in zip(*rows, strict=True)], len(rows))
    wanted = sacrebleu.corpus_bleu(found, [list(refs) for refs in zip(*golds, strict=True)]).score
    assert ours == pytest.approx(wanted)


def test_the_metric_of_a_wording_comes_from_its_metadata():
    assert metrics_for(("Accuracy",), choices=True) == (ACCURACY,)
    assert metrics_for(("Accuracy", "Other"), choices=False) == (EM, F1)
    assert metrics_for(("Squad",), choices=False)[0] is F1
    assert metrics_for(("BLEU", "ROUGE"), choices=False) == (ROUGE_L, BLEU_4)
    assert metrics_for((), choices=False) == (EM, F1)
    assert metrics_for(("AUC", "Other"), choices=False) == (EM, F1)
    names = {"accuracy", "exact_match", "f1", "triviaqa_exact_match", "triviaqa_f1", "rouge_l", "bleu"}
    assert set(METRICS.built_in) == names
