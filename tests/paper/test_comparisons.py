import pytest
import torch

from rankers import PASSAGES, QUESTION, save_bert
from shoulders.errors import UsageError
from shoulders.paper.comparisons import best_spans, extract
from shoulders.records import Passage
from shoulders.retrieval.reranker import Group, Reranker
from shoulders.retrieval.scoring import Pair

FOUND = [Passage(text, 0.0, title) for title, text in PASSAGES]


@pytest.fixture
def reranker(tmp_path):
    return Reranker.start(save_bert(tmp_path / "encoder"), dropout=0.0, dtype="float32")


def test_what_was_trained_is_extracted(reranker):
    groups = [
        Group(QUESTION, PASSAGES, ("Harald Fairhair",)),
        Group("which fish is eaten", (PASSAGES[2], PASSAGES[1]), ("cod",)),
    ]
    optimizer = torch.optim.AdamW(reranker.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        reranker(groups).backward()
        optimizer.step()
    asked = [QUESTION, "which fish is eaten"]
    assert extract(reranker, asked, [FOUND[::-1], FOUND[1:]]) == ["Harald Fairhair", "Cod"]
    first = best_spans(reranker, asked[:1], [FOUND[::-1]])[0]
    assert first.passage == len(FOUND) - 1
    assert first.characters in {(0, 15), (65, 80)}


def test_a_span_is_the_best_of_the_most_relevant_passage(reranker):
    [found] = best_spans(reranker, [QUESTION], [FOUND])
    pairs = [Pair(QUESTION, one.title, one.text) for one in FOUND]
    scores = reranker.frozen().scores(pairs)
    assert found.passage == scores.index(max(scores))
    row = reranker.rows(pairs)[found.passage]
    logits = reranker.span(reranker.tower.model(input_ids=torch.tensor([row.ids])).last_hidden_state)[0]
    start, end = logits[row.passage :].unbind(1)
    sums = {(i, j): (start[i] + end[j]).item() for i in range(len(start)) for j in range(i, min(i + 10, len(start)))}
    i, j = max(sums, key=sums.get)
    text, (first, last) = FOUND[found.passage].text, found.characters
    assert found.text == text[first:last]
    assert first <= row.offsets[i][0]
    assert last >= row.offsets[j][1]
    assert text[first : row.offsets[i][0]].isalnum() or first == row.offsets[i][0]
    assert text[row.offsets[j][1] : last].isalnum() or last == row.offsets[j][1]


def test_questions_are_answered_together_as_alone(reranker):
    asked = [QUESTION, "kings", "which fish is eaten", ""]
    given = [FOUND, FOUND[:2], FOUND[2:], FOUND[1:3]]
    alone = [best_spans(reranker, [question], [some])[0] for question, some in zip(asked, given, strict=True)]
    assert best_spans(reranker, asked, given) == alone
    assert best_spans(reranker, [], []) == []


def test_empty_passages_are_passed_over(reranker):
    empty = Passage("", 0.0, "Norway")
    assert best_spans(reranker, [QUESTION], [[empty, Passage("Cod is a fish.", 0.0)]])[0].passage == 1
    assert extract(reranker, [QUESTION], [[empty, Passage(" \n", 0.0)]]) == [""]
    assert extract(reranker, [QUESTION], [[Passage("\x00\x01", 0.0)]]) == [""]


def test_no_passage_is_refused(reranker):
    with pytest.raises(UsageError, match="no passage for 'kings'"):
        extract(reranker, [QUESTION, "kings"], [FOUND, []])
