from dataclasses import replace

import pytest
import torch
from transformers import BertTokenizerFast, DPRReaderTokenizerFast

from rankers import ANSWERS, CONTEXT, PASSAGES, QUESTION, save_bert
from shoulders.errors import CorruptFile, SaveFailed, SourceNotFound, UsageError
from shoulders.retrieval.reranker import (
    DESCRIPTION,
    HEADS,
    SEEN,
    Group,
    LossWeights,
    Reranker,
    RerankerOrigin,
    reranker_loss,
)
from shoulders.retrieval.scoring import Pair, SeenQuestions, corrected
from shoulders.store.files import write_tensors

GROUP = Group(QUESTION, PASSAGES, ANSWERS)
OTHER = Group("which fish is eaten", (PASSAGES[2], PASSAGES[1]), ("cod",))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_bert(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def reranker(encoder):
    return Reranker.start(encoder, dtype="float32")


@pytest.fixture
def still(encoder):
    """A re-ranker without dropout."""
    return Reranker.start(encoder, dropout=0.0, dtype="float32")


def by_hand(reranker, group):
    """The loss of a group, one row at a time and straight from its definition."""
    relevance, spans = [], []
    for row in reranker.rows(group.pairs):
        states = reranker.tower.model(input_ids=torch.tensor([row.ids])).last_hidden_state[0]
        relevance.append(reranker.relevance(states[0]).item())
        spans.append(reranker.span(states))
    found = torch.tensor(relevance).log_softmax(0)[0]
    start, end = spans[0].softmax(0).unbind(1)
    row, text = reranker.rows(group.pairs)[0], group.passages[0][1].lower()
    total = torch.zeros(())
    for answer in {one.lower() for one in group.answers}:
        at = text.find(answer)
        while at >= 0:
            inside = [n for n, (a, b) in enumerate(row.offsets) if a >= at and b <= at + len(answer)]
            total = total + start[row.passage + inside[0]] * end[row.passage + inside[-1]]
            at = text.find(answer, at + 1)
    return -found - total.log()


def test_the_loss_is_the_one_of_the_paper(still):
    assert still([GROUP]).item() == pytest.approx(by_hand(still, GROUP).item(), rel=1e-5)


def test_a_groups_loss_does_not_depend_on_its_neighbours(still):
    alone = still([GROUP]).item() + still([OTHER]).item()
    assert still([GROUP, OTHER]).item() == pytest.approx(alone, rel=1e-5)
    assert still([OTHER, GROUP]).item() == pytest.approx(alone, rel=1e-5)


def test_a_positive_without_a_span_is_still_to_be_the_relevant_one(still):
    without = replace(GROUP, answers=("Olav",))
    relevance = torch.tensor(still.frozen().scores(GROUP.pairs)).log_softmax(0)[0]
    assert still([without]).item() == pytest.approx(-relevance.item(), rel=1e-4)


def test_dropout_is_on_in_training_and_only_there(reranker):
    scores = reranker.frozen().scores(GROUP.pairs)
    torch.manual_seed(1)
    first, second = reranker([GROUP]).item(), reranker([GROUP]).item()
    torch.manual_seed(1)
    assert reranker([GROUP]).item() == first != second
    assert not reranker.training
    assert reranker.frozen().scores(GROUP.pairs) == scores


def test_training_moves_all_that_trains_and_lowers_the_loss(still):
    before = {name: value.detach().clone() for name, value in still.named_parameters() if value.requires_grad}
    optimizer = torch.optim.AdamW(still.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = reranker_loss(still, [GROUP, OTHER])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    now = dict(still.named_parameters())
    unmoved = {name for name, value in before.items() if torch.equal(now[name], value)}
    assert unmoved == set()
    scores = still.frozen().scores(GROUP.pairs)
    assert scores.index(max(scores)) == 0


@pytest.fixture
def correcting(encoder):
    """A re-ranker that starts at the retriever's order, without dropout."""
    return Reranker.start(encoder, dropout=0.0, dtype="float32", order_weight=2.0)


ORDERED = replace(GROUP, order=tuple(1.5 - number for number in range(len(PASSAGES))))


def test_training_starts_at_the_order_that_was_given(correcting):
    assert correcting.frozen().scores(ORDERED.pairs) == [0.0] * len(PASSAGES)
    without_span = replace(ORDERED, answers=("Olav",))
    wanted = -torch.tensor([2.0 * one for one in ORDERED.order]).log_softmax(0)[0]
    assert correcting([without_span]).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_a_correction_is_head_and_similarity_behind_the_gate(correcting):
    with torch.no_grad():
        correcting.gate.fill_(0.5)
    wanted = []
    for row in correcting.rows(GROUP.pairs):
        states = correcting.tower.model(input_ids=torch.tensor([row.ids])).last_hidden_state[0]
        question, passage = states[1 : row.question].mean(0), states[row.question + 1 :].mean(0)
        similarity = torch.nn.functional.cosine_similarity(question, passage, dim=0)
        wanted.append(0.5 * (correcting.relevance(states[0])[0] + 10 * similarity).item())
    assert correcting.frozen().scores(GROUP.pairs) == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_a_correction_is_learnt_where_the_order_is_wrong(correcting):
    wrong = replace(GROUP, answers=("Olav",), order=tuple(number - 1.0 for number in range(len(PASSAGES))))
    optimizer = torch.optim.AdamW(correcting.parameters(), lr=5e-3)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = reranker_loss(correcting, [wrong])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    scores = corrected(correcting.frozen().scores(GROUP.pairs), wrong.order, correcting.order_weight)
    assert scores.index(max(scores)) == 0


def test_a_correcting_reranker_is_saved_with_its_gate_and_weight(correcting, reranker, tmp_path):
    with torch.no_grad():
        correcting.gate.fill_(0.25)
    correcting.save(tmp_path / "run", correcting.about)
    loaded = Reranker.load(tmp_path / "run", dtype="float32")
    assert loaded.order_weight == loaded.frozen().order_weight == 2.0
    assert loaded.frozen().scores(GROUP.pairs) == correcting.frozen().scores(GROUP.pairs)
    assert loaded.fingerprint() == correcting.fingerprint() != reranker.fingerprint()


def test_training_starts_from_another_rerankers_encoder_and_heads_at_the_order_given(correcting, tmp_path):
    with torch.no_grad():
        correcting.gate.fill_(0.25)
    correcting.save(tmp_path / "run" / "best", RerankerOrigin("bert", seen=SeenQuestions.of(["Who?"])))
    again = Reranker.start(str(tmp_path / "run"), dtype="float32", order_weight=1.0, seed=5)
    assert again.frozen().scores(ORDERED.pairs) == [0.0] * len(PASSAGES)
    assert "who" in again.seen  # what it starts from has seen it
    with torch.no_grad():
        again.gate.fill_(0.25)
    assert again.frozen().scores(GROUP.pairs) == correcting.frozen().scores(GROUP.pairs)


def test_the_weights_of_the_loss_scale_its_parts(still):
    groups = [replace(GROUP, taught=(0.1, 0.2, 0.3, 0.4)), OTHER]
    whole, relevance = still(groups).item(), still(groups, LossWeights(span=0.0)).item()
    assert still(groups, LossWeights(span=0.25)).item() == pytest.approx(relevance + 0.25 * (whole - relevance))
    logs = torch.tensor(still.frozen().scores(GROUP.pairs)).log_softmax(0)
    taught = -(logs * torch.tensor(groups[0].taught)).sum().item()
    own = still([GROUP], LossWeights(span=0.0)).item()
    mixed = still(groups[:1], LossWeights(span=0.0, teacher=0.75)).item()
    assert mixed == pytest.approx(0.25 * own + 0.75 * taught, rel=1e-4)


def test_rows_are_what_dprs_own_tokenizer_makes(reranker, tmp_path):
    reranker.tower.tokenizer.save_pretrained(tmp_path)
    vocabulary = reranker.tower.tokenizer.get_vocab()
    (tmp_path / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)))
    theirs = DPRReaderTokenizerFast(str(tmp_path / "vocab.txt"))
    assert isinstance(theirs, BertTokenizerFast)
    wanted = theirs(QUESTION, titles=[title for title, _ in PASSAGES], texts=[text for _, text in PASSAGES])
    assert [row.ids for row in reranker.rows(GROUP.pairs)] == wanted["input_ids"]


def test_the_passage_is_cut_at_its_end_and_the_question_is_not(encoder):
    short = Reranker.start(encoder, length=40, dtype="float32")
    whole = Reranker.start(encoder, dtype="float32")
    assert whole.rows.length == CONTEXT  # no more than the encoder reads
    pair = Pair(QUESTION, *PASSAGES[0])
    assert short.rows([pair])[0].ids == whole.rows([pair])[0].ids[:40]


def test_a_question_longer_than_its_room_is_cut_and_counted(reranker):
    long = "who was " * 100
    row = reranker.rows([Pair(long, "Norway " * 100, "cod " * 100)])[0]
    assert len(row) == reranker.rows.length
    assert row.passage <= reranker.rows.length * 3 // 4 + 3
    assert reranker.rows.too_long([QUESTION, long]) == 1


@pytest.mark.parametrize(
    "pair",
    [
        Pair("", "", ""),
        Pair("\x00\x07", "<b>T</b>", "<p>one\x00 two</p>\n\r\t"),
        Pair("q", "t", ""),
        Pair("\u200b", "", "\U0001d518 😀 " * 200),
    ],
)
def test_strange_texts_have_a_score(reranker, pair):
    scores = reranker.frozen().scores([pair, Pair(QUESTION, *PASSAGES[0])])
    assert torch.tensor(scores).isfinite().all()
    assert reranker([Group(pair.question, ((pair.title, pair.text),), ("x",))]).isfinite()


def test_no_pair_no_score(reranker):
    assert reranker.frozen().scores([]) == []
    with pytest.raises(UsageError, match="no passage"):
        Group("q", (), ("a",))


def test_saved_and_loaded_is_the_same(reranker, tmp_path):
    about = RerankerOrigin("bert", {"name": "nq"}, {"recall": 50.0}, SeenQuestions.of([QUESTION]))
    reranker.save(tmp_path / "run", about)
    loaded = Reranker.load(tmp_path / "run", dtype="float32")
    assert loaded.frozen().scores(GROUP.pairs) == reranker.frozen().scores(GROUP.pairs)
    assert loaded.fingerprint() == reranker.fingerprint()
    assert (loaded.about, loaded.rows.length) == (about, reranker.rows.length)
    assert "Who was the  FIRST king of Norway!" in loaded.seen
    assert "who was the second king of norway" not in loaded.seen
    reranker.save(tmp_path / "run", about)  # in its own place


def test_a_fingerprint_tells_weights_heads_and_lengths_apart(encoder, reranker):
    others = [
        Reranker.start(encoder, dtype="float32", seed=1),
        Reranker.start(encoder, dtype="float32", length=50),
        Reranker.start(encoder, dtype="bfloat16"),
    ]
    assert len({one.fingerprint() for one in [reranker, *others]}) == 4
    assert Reranker.start(encoder, dtype="float32").fingerprint() == reranker.fingerprint()


def test_broken_folders_are_told_in_a_line(reranker, encoder, tmp_path):
    with pytest.raises(SourceNotFound, match="no re-ranker"):
        Reranker.load(encoder)
    folder = tmp_path / "run"
    reranker.save(folder, reranker.about)
    (folder / SEEN).write_bytes((folder / SEEN).read_bytes()[:20])
    with pytest.raises(CorruptFile, match="truncated"):
        Reranker.load(folder)
    reranker.save(folder, reranker.about)
    write_tensors(folder / HEADS, {"span.weight": torch.zeros(2, 2)})
    with pytest.raises(CorruptFile, match="do not fit"):
        Reranker.load(folder)
    (folder / DESCRIPTION).write_text('{"format": "other"}')
    with pytest.raises(UsageError, match="format 'other'"):
        Reranker.load(folder)
    (folder / DESCRIPTION).write_text("{")
    with pytest.raises(CorruptFile, match="not JSON"):
        Reranker.load(folder)
    with pytest.raises(SaveFailed, match="other files"):
        reranker.save(tmp_path, reranker.about)


def test_encoders_that_are_unlike_bert_are_refused(tiny_encoder, folders):
    tiny_encoder("bert")
    with pytest.raises(UsageError, match="like BERT"):
        Reranker.start(str(folders / "encoder-bert"))  # its tokenizer has no [CLS]
    with pytest.raises(UsageError, match="at least 16 tokens, got 3"):
        Reranker.start(save_bert(folders / "short"), length=3)
