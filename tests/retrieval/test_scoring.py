import pytest
import torch
from sentence_transformers import CrossEncoder as Theirs
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DPRConfig,
    DPRReader,
    ElectraConfig,
    ElectraForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from rankers import PASSAGES, QUESTION, save, save_bert, sizes
from shoulders.errors import CorruptFile, SourceNotFound, UsageError
from shoulders.retrieval import scoring
from shoulders.retrieval.cross_encoder import CrossEncoder, load_ranker, load_reranker
from shoulders.retrieval.reranker import Reranker
from shoulders.retrieval.scoring import Pair, scoring_copy

ASKED = (QUESTION, "which fish is eaten", "kings")
PAIRS = [Pair(question, *passage) for question in ASKED for passage in PASSAGES]
DISTIL = {"vocab_size": sizes()["vocab_size"], "dim": 24, "hidden_dim": 32, "n_layers": 2, "n_heads": 3}
CLASSIFIERS = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**sizes(num_labels=1))),
    "roberta": lambda: RobertaForSequenceClassification(
        RobertaConfig(**sizes(num_labels=1, max_position_embeddings=99, type_vocab_size=2))
    ),
    "xlm-roberta": lambda: XLMRobertaForSequenceClassification(
        XLMRobertaConfig(**sizes(num_labels=1, max_position_embeddings=99, type_vocab_size=2))
    ),
    "electra": lambda: ElectraForSequenceClassification(ElectraConfig(**sizes(num_labels=1, embedding_size=16))),
    "distilbert": lambda: DistilBertForSequenceClassification(DistilBertConfig(**DISTIL, num_labels=1)),
}


@pytest.fixture(params=CLASSIFIERS)
def classifier(request, tmp_path):
    """Tiny cross-encoders of several families, saved to a folder; the last is one that computes all states."""
    torch.manual_seed(5)
    save(CLASSIFIERS[request.param](), tmp_path)
    return str(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny re-ranker in a folder."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    reranker = Reranker.start(save_bert(tmp_path_factory.mktemp("encoder")), dtype="float32", dropout=0.0)
    reranker.save(folder, reranker.about)
    return str(folder)


def test_cross_encoders_score_as_sentence_transformers_does(classifier):
    theirs = Theirs(classifier, device="cpu", local_files_only=True)
    wanted = theirs.predict(
        [(pair.question, f"{pair.title} {pair.text}".strip()) for pair in PAIRS], activation_fn=torch.nn.Identity()
    )
    found = load_ranker(classifier, dtype="float32", device="cpu").scores(PAIRS)
    assert found == pytest.approx(wanted.tolist(), abs=1e-5)
    assert max(found) - min(found) > 1e-3


def test_both_cut_what_is_too_long_alike(tmp_path):
    torch.manual_seed(5)
    save(CLASSIFIERS["bert"](), tmp_path)
    pairs = [
        Pair("who was " * 30, "", "cod is a fish " * 60),
        Pair("cod", "", "fish " * 300),
        Pair("cod " * 300, "", "a"),
    ]
    theirs = Theirs(str(tmp_path), device="cpu", local_files_only=True)
    wanted = theirs.predict([(pair.question, pair.text) for pair in pairs], activation_fn=torch.nn.Identity())
    found = CrossEncoder.load(str(tmp_path), dtype="float32").scores(pairs)
    assert found == pytest.approx(wanted.tolist(), abs=1e-5)


def test_the_first_state_alone_is_the_first_of_all(classifier):
    model = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    ids = torch.randint(5, model.config.vocab_size, (3, 20))
    mask = torch.arange(20) < torch.tensor([[20], [7], [12]])
    given = {"input_ids": ids, "attention_mask": mask.long()}
    narrow = scoring_copy(model, torch.float32)
    torch.testing.assert_close(narrow(**given).logits, model(**given).logits)
    states = narrow.base_model(**given).last_hidden_state
    assert states.shape[1] == (20 if "distil" in model.config.model_type else 1)


@pytest.mark.parametrize("budget", [1, 100, 400, 100_000])
def test_a_score_does_not_depend_on_its_neighbours(trained, budget, monkeypatch):
    ranker = load_ranker(trained, dtype="float32")
    alone = [ranker.scores([pair])[0] for pair in PAIRS]
    monkeypatch.setitem(scoring.POSITIONS, "cpu", budget)
    assert ranker.scores(PAIRS) == pytest.approx(alone, abs=1e-5)
    monkeypatch.setattr(scoring, "AT_ONCE", 5)
    seen = []
    assert ranker.scores(PAIRS[::-1], lambda done, of: seen.append((done, of))) == pytest.approx(alone[::-1], abs=1e-5)
    assert seen == sorted(seen)
    assert seen[-1] == (len(PAIRS), len(PAIRS))


def test_scores_are_the_relevance_head_on_the_first_state(trained):
    reranker = Reranker.load(trained, dtype="float32")
    row = reranker.rows(PAIRS[:1])[0]
    states = reranker.tower.model(input_ids=torch.tensor([row.ids])).last_hidden_state
    assert reranker.frozen().scores(PAIRS[:1]) == pytest.approx([reranker.relevance(states[0, 0]).item()], abs=1e-6)


def test_frozen_scores_stay_as_they_were(trained):
    reranker = Reranker.load(trained, dtype="float32")
    frozen = reranker.frozen()
    before, fingerprint = frozen.scores(PAIRS), frozen.fingerprint
    with torch.no_grad():
        for weight in reranker.parameters():
            weight.add_(0.1)
    assert frozen.scores(PAIRS) == before
    assert reranker.frozen().fingerprint != fingerprint == frozen.fingerprint


def test_half_precision_is_near_and_has_another_fingerprint(trained):
    exact, half = load_ranker(trained, dtype="float32"), load_ranker(trained, dtype="bfloat16")
    assert half.scores(PAIRS) == pytest.approx(exact.scores(PAIRS), abs=0.1)
    assert half.scores(PAIRS) != exact.scores(PAIRS)
    assert half.fingerprint != exact.fingerprint


def test_the_published_reader_is_read(tmp_path, trained):
    torch.manual_seed(4)
    theirs = DPRReader(DPRConfig(**sizes())).eval()
    save(theirs, tmp_path / "dpr")
    ours = load_reranker(str(tmp_path / "dpr"), dtype="float32")
    assert ours is not None
    assert load_ranker(str(tmp_path / "dpr"), dtype="float32").fingerprint == ours.fingerprint()
    ours.save(tmp_path / "ours", ours.about)
    again = Reranker.load(tmp_path / "ours", dtype="float32")
    assert again.fingerprint() == ours.fingerprint()
    for reranker in (ours, again):
        row = reranker.rows(PAIRS[:1])[0]
        with torch.inference_mode():
            wanted = theirs(input_ids=torch.tensor([row.ids]))
            spans = reranker.span(reranker.tower.model(input_ids=torch.tensor([row.ids])).last_hidden_state)[0]
        assert reranker.frozen().scores(PAIRS[:1]) == pytest.approx(wanted.relevance_logits.tolist(), abs=1e-5)
        torch.testing.assert_close(spans[:, 0], wanted.start_logits[0])
        torch.testing.assert_close(spans[:, 1], wanted.end_logits[0])
    projected = DPRReader(DPRConfig(**sizes(projection_dim=8)))
    save(projected, tmp_path / "projected")
    with pytest.raises(UsageError, match="projects"):
        load_ranker(str(tmp_path / "projected"))


def test_models_of_another_kind_are_refused(tmp_path):
    with pytest.raises(UsageError, match="BertModel, which cannot rank passages"):
        load_ranker(save_bert(tmp_path / "encoder"))
    save(BertForSequenceClassification(BertConfig(**sizes(num_labels=3))), tmp_path / "labels")
    with pytest.raises(UsageError, match="3 labels"):
        load_ranker(str(tmp_path / "labels"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceNotFound, match="empty"):
        load_ranker(str(tmp_path / "empty"))
    with pytest.raises(SourceNotFound, match="no model folder"):
        load_ranker("/nowhere/at/all")


def test_broken_weights_are_told(tmp_path):
    save(CLASSIFIERS["bert"](), tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CorruptFile, match="truncated or broken"):
        load_ranker(str(tmp_path))
