"""Texts are data: nothing in them is a special token, each has its embedding, and no character is half of one."""

from copy import deepcopy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

import rankers
import tiny
from shoulders.backbone.frozen import FrozenLM
from shoulders.backbone.tokenizing import keep_text, tokenized
from shoulders.engine.inference import rank
from shoulders.errors import UsageError
from shoulders.records import Question
from shoulders.scaffolds.base import Bare


def unigram():
    """As T5's tokenizer: special tokens are pieces of the model itself."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>", "<extra_id_0>"]
    letters = [chr(letter) for letter in range(33, 127)]
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=special, unk_token="<unk>", initial_alphabet=letters, show_progress=False
    )
    made.train_from_iterator(tiny.TEXTS * 4, trainer)
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", extra_special_tokens=special[3:]
    )


def whole_words():
    """As a tokenizer whose model takes whatever stands between two spaces."""
    made = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "a": 2, "<": 3, "/s>": 4}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="<unk>")


TOKENIZERS = {
    "bytes": tiny.tokenizer, "words": rankers.tokenizer, "unigram": unigram, "slow": ByT5Tokenizer,
    "whole words": whole_words,
}  # fmt: skip
USUAL = {name: make() for name, make in TOKENIZERS.items()}
READ = {name: keep_text(deepcopy(usual)) for name, usual in USUAL.items()}
PIECES = [
    "</s>",
    "<s>",
    "<pad>",
    "<unk>",
    "[SEP]",
    "[CLS]",
    "[MASK]",
    "<extra_id_0>",
    "<",
    "/s>",
    "a",
    " ",
    "four",
    "Ω",
]
TEXTS = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=6).map("".join)
many = settings(max_examples=100, deadline=None)


@pytest.mark.parametrize("name", READ)
@many
@given(text=TEXTS.filter(lambda text: text.isprintable() or text == ""))
def test_no_text_holds_a_special_token(name, text):
    tokenizer = READ[name]
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert not set(ids) & (set(tokenizer.all_special_ids) - {tokenizer.unk_token_id})
    if name in ("bytes", "slow"):
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    elif name == "unigram" and text.isascii():
        assert tokenizer.decode(ids, skip_special_tokens=True).split() == text.split()
    added = tokenizer(text).input_ids
    assert [token for token in added if token not in tokenizer.all_special_ids or token in ids] == ids


@pytest.mark.parametrize("name", ["bytes", "words", "unigram"])
def test_a_text_without_special_tokens_is_read_as_before_and_by_what_is_saved(name, tmp_path):
    READ[name].save_pretrained(tmp_path)
    usual, saved = USUAL[name], AutoTokenizer.from_pretrained(tmp_path)
    for text in [*tiny.TEXTS, "", "a < b /s> c", "twelve  spaces\tand\nlines"]:
        assert READ[name](text).input_ids == usual(text).input_ids == saved(text).input_ids
    assert saved.all_special_ids == usual.all_special_ids
    assert saved("a </s>").input_ids == usual("a </s>").input_ids  # elsewhere it stays the special token


@many
@given(text=TEXTS, continuation=TEXTS)
def test_what_a_model_reads_begins_once_and_loses_nothing(adding_lm, text, continuation):
    ids = adding_lm.ids(text)
    assert ids[0] == 1
    assert not {1, 2} & set(ids[1:])
    assert adding_lm.text(ids) == text
    said = adding_lm.continuation_ids(text, continuation)
    assert adding_lm.text(ids + said) == f"{text} {continuation}"


@pytest.fixture(scope="module")
def adding_lm(tiny_lm):
    made = tiny.tokenizer()
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return FrozenLM(tiny_lm("llama").model, keep_text(made), "adding")


def test_choices_that_end_in_an_end_are_other_choices(lm):
    four, ended, end, space = rank([Question("Two plus two is")], [["four", "four</s>", "</s>", " "]], lm, Bare())[0]
    assert four != pytest.approx(ended, abs=1e-3)
    assert end != pytest.approx(space, abs=1e-3)
    plain, tail = (rank([Question(f"Which tag is{some}")], [["four"]], lm, Bare())[0][0] for some in ("", " </s>"))
    assert plain != pytest.approx(tail, abs=1e-3)
    with pytest.raises(UsageError, match="the question 'Name a planet' has no choices to rank"):
        rank([Question("Name a planet")], [[]], lm, Bare())


@many
@given(before=st.text(max_size=30), half=st.characters(min_codepoint=0xD800, max_codepoint=0xDFFF, categories=["Cs"]))
def test_half_a_character_is_named_with_its_place(before, half):
    for texts in (f"{before}{half}after", ["whole", f"{before}{half}"]):
        with pytest.raises(UsageError, match=rf"\\u{ord(half):04x}' as character {len(before) + 1},") as refused:
            tokenized(READ["bytes"], 400, texts)
        assert str(refused.value).isascii()


def test_a_token_beyond_the_embeddings_is_named(tiny_lm):
    made = tiny.tokenizer()
    made.add_tokens([f"<extra_{number}>" for number in range(tiny.VOCABULARY)])
    lm = FrozenLM(tiny_lm("llama").model, keep_text(made), "more")
    with pytest.raises(UsageError, match=r"the token '<extra_390>' \(id \d+\), but the model has only 400 embeddings"):
        lm.ids("Name a planet. <extra_390>")
    with pytest.raises(UsageError, match="400 embeddings"):
        tokenized(made, 400, ["whole", "<extra_390>"])
    assert lm.ids("Name a planet. <extra_>")
