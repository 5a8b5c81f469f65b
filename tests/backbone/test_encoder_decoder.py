import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, T5EncoderModel

from shoulders.backbone.encoder_decoder import FrozenEncoderDecoder
from shoulders.backbone.sources import is_encoder_decoder
from shoulders.errors import CorruptFile, SourceNotFound
from tiny import TEXTS, save_encoder_decoder

CHOICES = [["yes", "no"], ["good", "not very good", "bad"], ["Paris"], ["a", "b"], ["the cat", "the dog"]]


@pytest.fixture(params=["t5", "bart"])
def model(request, folders):
    folder = folders / f"encoder-decoder-{request.param}"
    if not folder.exists():
        save_encoder_decoder(request.param, folder)
    return FrozenEncoderDecoder.load(str(folder), dtype="float32", device="cpu")


@pytest.fixture
def theirs(model):
    return AutoModelForSeq2SeqLM.from_pretrained(model.name).eval(), AutoTokenizer.from_pretrained(model.name)


def sources(model):
    return [model.source_ids(text, 1024)[0] for text in TEXTS]


def test_log_likelihoods_are_those_of_transformers_one_by_one(model, theirs):
    lm, tokenizer = theirs
    targets = [[model.target_ids(choice) for choice in some] for some in CHOICES]
    found = model.score(sources(model), targets)
    assert [len(row) for row in found] == [2, 3, 1, 2, 2]
    for text, some, scores in zip(TEXTS, CHOICES, found, strict=True):
        given = tokenizer(text, return_tensors="pt")
        for choice, score in zip(some, scores, strict=True):
            labels = tokenizer(choice, return_tensors="pt").input_ids
            with torch.no_grad():
                loss = lm(input_ids=given.input_ids, attention_mask=given.attention_mask, labels=labels).loss
            assert score == pytest.approx(-loss.item() * labels.shape[1], rel=1e-4)
    few = model.score(sources(model), targets, positions_at_once=1)
    for one, other in zip(few, found, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_the_encoder_reads_each_source_once(model, monkeypatch):
    encoder, rows = model.model.get_encoder(), []
    forward = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda *a, **k: rows.append(len(k["input_ids"])) or forward(*a, **k))
    model.score(sources(model), [[model.target_ids(choice) for choice in some] for some in CHOICES])
    assert rows == [len(TEXTS)]


def test_greedy_answers_are_those_of_transformers_one_by_one(model, theirs):
    lm, tokenizer = theirs
    found = model.likeliest(sources(model), longest=6)
    for text, one in zip(TEXTS, found, strict=True):
        given = tokenizer(text, return_tensors="pt")
        ids = lm.generate(**given, max_new_tokens=6, do_sample=False, num_beams=1)[0, 1:]
        assert one.ids == [token for token in ids.tolist() if token not in model.ends][: len(one.ids)]
        assert len(one.ids) == 6 or ids[len(one.ids)] in model.ends
        assert one.margin >= 0
        said = ids[: len(one.ids) + 1].tolist()  # with its end, if it has one
        (likelihood,) = model.score([tokenizer(text).input_ids], [[said]])
        assert one.log_probability == pytest.approx(likelihood[0], rel=1e-4)


def test_an_input_is_cut_before_its_end_token(model):
    whole, cut = model.source_ids(TEXTS[2], 1024)
    assert not cut
    assert whole[-1] == 2
    short, cut = model.source_ids(TEXTS[2], 7)
    assert cut
    assert (len(short), short[-1]) == (7, 2)
    assert short[:-1] == whole[:6]
    assert model.source_ids("word " * 300, 1024)[1] == (model.context < 1024)
    model.input_end = False
    assert model.source_ids(TEXTS[2], 1024)[0] == [token for token in whole if token not in (1, 2)]
    assert model.target_ids("yes")[-1] == 2


def test_what_is_no_sequence_to_sequence_model(model, lm, tmp_path):
    assert is_encoder_decoder(model.name)
    assert not is_encoder_decoder(lm.name)
    with pytest.raises(SourceNotFound, match="AutoModelForSeq2SeqLM"):
        FrozenEncoderDecoder.load(lm.name)
    if model.model.config.model_type == "t5":
        T5EncoderModel.from_pretrained(model.name).save_pretrained(tmp_path)
        model.tokenizer.save_pretrained(tmp_path)
        with pytest.raises(CorruptFile, match=r"28 tensors are missing \(decoder"):
            FrozenEncoderDecoder.load(str(tmp_path))
