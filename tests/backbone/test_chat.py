"""A chat template: the tokens that the model was trained on, the prompt inside it, and texts that stay texts."""

from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ByT5Tokenizer

import chats
import tiny
from shoulders.backbone.chat import SETTINGS, check_chat, conversation
from shoulders.backbone.frozen import FrozenLM
from shoulders.engine.batches import answer_ids, encode, question_batch, tokenised, training_batch, truncated
from shoulders.engine.inference import Answering, Sampling, answered, choose, rank, sample, stream
from shoulders.errors import ContextFull, UnknownName, UsageError
from shoulders.evidence.packing import Packer
from shoulders.records import Chat, Message, Passage, Placement, Question
from shoulders.scaffolds.base import Bare
from shoulders.scaffolds.soft_prompt import SoftPrompt
from shoulders.training.losses import scaffold_loss

USUAL = {name: chats.tokenizer(name) for name in chats.TEMPLATES}
SYSTEM = "Answer in one word."
ASKED = "Is the film long?"


@pytest.fixture(scope="module")
def chat_lm(tiny_lm):
    """A function that returns a tiny model with the template of a family."""
    made = {}

    def of(name: str) -> FrozenLM:
        if name not in made:
            made[name] = chats.chat_lm(name, tiny_lm("llama"))
        return made[name]

    return of


def own_ids(name, messages, **settings):
    """What the tokenizer itself makes of some messages."""
    rows = [{"role": one.role, "content": one.content} for one in messages]
    kept = {**SETTINGS, "add_generation_prompt": True, **settings}
    return USUAL[name].apply_chat_template(rows, **kept)["input_ids"]


def conversations(name):
    """Conversations that the template of a family takes."""
    turns = [Message("user", "Name a planet."), Message("assistant", "Saturn")]
    found = [[], turns]
    return [*found, *([[Message("system", SYSTEM), *some] for some in found] if name in chats.WITH_SYSTEM else [])]


@pytest.mark.parametrize("name", chats.TEMPLATES)
def test_a_conversation_has_the_tokens_that_the_tokenizer_itself_gives_it(chat_lm, name):
    lm = chat_lm(name)
    for before in conversations(name):
        for text in (ASKED, "Two plus\ntwo  is", " the price of  the ticket "):
            for evidence in ("", "The film was long.\n\n"):
                asked = conversation([*before, Message("user", text)], evidence)
                row = encode(asked, lm)
                assert row.ids == own_ids(name, [*before, Message("user", evidence + text)])
                assert row.ids.count(lm.tokenizer.bos_token_id) == (name in ("llama3", "gemma", "mistral"))


@pytest.mark.parametrize("name", chats.TEMPLATES)
def test_the_prompt_stands_before_the_system_text_before_the_question_or_after_it(chat_lm, name):
    lm = chat_lm(name)

    def around(row, placement):
        at = row.slot(placement)
        return tuple(lm.tokenizer.decode(part, skip_special_tokens=False) for part in (row.ids[:at], row.ids[at:]))

    for before in conversations(name):
        row = encode(conversation([*before, Message("user", ASKED)], "The film was long.\n\n"), lm)
        before_question, question = around(row, Placement.INFIX)
        assert before_question.endswith("The film was long.\n\n")
        assert question.startswith(ASKED)
        assert around(row, Placement.SUFFIX)[0].endswith(ASKED)
        first = SYSTEM if before and before[0].role == "system" else before[0].content if before else "The film"
        if name != "mistral" or len(before) == 1:
            assert around(row, Placement.PREFIX)[1].startswith(first)
    chat = Chat.of(SYSTEM) if name in chats.WITH_SYSTEM else Chat()
    lengths = {encode(Question(text, chat=chat), lm).slot(Placement.PREFIX) for text in tiny.TEXTS}
    assert len(lengths) == 1  # the same column for all: training pads at the end only


@pytest.mark.parametrize("name", chats.TEMPLATES)
@pytest.mark.parametrize("placement", Placement)
def test_an_empty_prompt_is_the_bare_model_over_the_template(chat_lm, name, placement):
    lm = chat_lm(name)
    empty = SoftPrompt(torch.zeros(0, lm.width), placement)
    asked = [Question(text, chat=Chat()) for text in tiny.TEXTS[:3]]
    for question in asked:
        ids = torch.tensor([own_ids(name, [Message("user", question.text)])])
        alone = lm.states(lm.embed(ids))
        given = question_batch([encode(question, lm)], lm, empty)
        assert torch.allclose(empty.states(lm, given), alone, atol=1e-5)
        longer = lm.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, eos_token_id=list(lm.ends)
        )
        kept = [token for token in longer[0, ids.shape[1] :].tolist() if token not in lm.ends]
        (answer,) = answered([question], lm, empty, Answering(6))
        assert answer.text == lm.text(kept).strip()
        assert "".join(stream(question, lm, empty, Answering(6))).strip() == answer.text


@pytest.mark.parametrize("name", chats.TEMPLATES)
def test_training_ranking_and_the_template_agree_on_an_answer_and_its_end(chat_lm, name):
    lm = chat_lm(name)
    row = encode(Question(ASKED, chat=Chat()), lm, "dog")
    whole = own_ids(name, [Message("user", ASKED), Message("assistant", "dog")], add_generation_prompt=False)
    assert (row.ids + row.target) == whole[: len(row.ids) + len(row.target)]
    assert row.target[-1] == lm.tokenizer.convert_tokens_to_ids(chats.ENDS[name])
    assert row.target[-1] in lm.ends
    assert lm.end == lm.tokenizer.eos_token_id
    prompt = SoftPrompt.from_vocabulary(lm, length=3)
    for placement in Placement:
        prompt.placement = placement
        (scores,) = rank([row.question], [["dog", "the cat", "</s> dog"]], lm, prompt)
        losses = [
            scaffold_loss(lm, prompt)(prompt, [encode(row.question, lm, answer)]).item()
            for answer in ("dog", "the cat", "</s> dog")
        ]
        assert scores == pytest.approx([-one for one in losses], abs=1e-3)
    assert choose([row.question], [["dog", "the cat"]], lm, prompt)[0].text in ("dog", "the cat")


PIECES = ["<|im_end|>", "<|im_start|>", "<|eot|>", "</turn>", "<s>", "</s>", "<think>", "[/INST]", "<", "a", " ", "|>"]


@pytest.mark.parametrize("name", ["chatml", "llama3", "qwen3", "mistral"])
@settings(max_examples=40, deadline=None)
@given(pieces=st.lists(st.sampled_from(PIECES), min_size=1, max_size=5), system=st.sampled_from(PIECES))
def test_no_text_of_a_user_is_a_token_of_the_template(name, pieces, system):
    lm = LMS[name]
    text, plain = f"b{''.join(pieces)}b", Question("bb", chat=Chat.of("cc"))
    row, usual = encode(Question(text, chat=Chat.of(f"c{system}c")), lm), encode(plain, lm)
    control = {one for one, token in lm.tokenizer.added_tokens_decoder.items() if len(str(token)) > 1}
    assert [one for one in row.ids if one in control] == [one for one in usual.ids if one in control]
    kept = "".join(lm.tokenizer.decode(row.ids, skip_special_tokens=False).split())
    assert "".join(text.split()) in kept
    at = row.slot(Placement.SUFFIX)
    assert "".join(lm.tokenizer.decode(row.ids[:at]).split()).endswith("".join(text.split()))


LMS: dict[str, FrozenLM] = {}


@pytest.fixture(autouse=True, scope="module")
def _models(chat_lm):
    LMS.update({name: chat_lm(name) for name in chats.TEMPLATES})


def test_rows_in_conversations_and_plain_ones_share_a_batch(chat_lm):
    lm = chat_lm("chatml")
    prompt = SoftPrompt.from_vocabulary(lm, length=4)
    asked = [
        Question(ASKED, chat=Chat.of(SYSTEM)),
        Question(ASKED),
        Question("Name a planet.", chat=Chat()),
        Question("Is it long?", evidence="A film was long. ", chat=Chat()),
    ]
    for placement in Placement:
        prompt.placement = placement
        together = answered(asked, lm, prompt, Answering(5))
        for question, answer in zip(asked, together, strict=True):
            (alone,) = answered([question], lm, prompt, Answering(5))
            assert alone.log_probability == pytest.approx(answer.log_probability, abs=1e-3)
        rows = [encode(question, lm, "long") for question in asked]
        loss = scaffold_loss(lm, prompt)
        every = loss(prompt, rows).item()
        assert every == pytest.approx(sum(loss(prompt, [row]).item() for row in rows), rel=1e-4)
    assert training_batch(rows[:1], lm, prompt).given.mask is None
    drawn = sample(asked[:1], lm, prompt, Sampling(3), Answering(4))
    assert len(drawn[0]) == 3


def test_a_question_that_is_too_long_is_cut_inside_the_template(chat_lm):
    lm = chat_lm("chatml")
    long = Question("long film " * 60, chat=Chat())
    row = encode(long, lm)
    tail = row.ids[row.slot(Placement.SUFFIX) :]
    cut = truncated(row, 60)
    assert len(cut.ids) == 60
    assert cut.ids[-len(tail) :] == tail
    assert cut.ids[: cut.slot(Placement.SUFFIX)] == row.ids[: 60 - len(tail)]
    with pytest.raises(ContextFull):
        answered([long], lm, Bare(), Answering(4))
    asked = []
    answered([long], lm, Bare(), Answering(4, truncate=True, on_cut=asked.append))
    assert asked == [long]


def test_packing_counts_the_tokens_of_the_template(chat_lm):
    lm = chat_lm("chatml")
    passages = [Passage(f"the film {number} was long", 1.0) for number in range(20)]
    room = 110
    for chat in (None, Chat(), Chat.of(SYSTEM)):
        packed = Packer(lm, room).pack(Question(ASKED, chat=chat), passages)
        ids = packed.question.ids
        assert ids is not None
        assert list(ids) == encode(packed.question, lm).ids
        assert room - 25 < len(ids) <= room
        one_more = tokenised(Question(ASKED, f"{packed.question.evidence}{passages[0].text}\n\n", chat=chat), lm)
        assert len(one_more.ids or ()) > room
    plain, with_system = (len(Packer(lm, room).pack(Question(ASKED, chat=c), passages).passages) for c in (None, chat))
    assert plain > with_system > 0


def test_what_cannot_be_read_is_named_in_one_line(lm, chat_lm):
    asked = Question(ASKED, chat=Chat())
    with pytest.raises(UsageError, match="has no chat template: ask it without one"):
        encode(asked, lm)
    assert lm.template is None
    with pytest.raises(UsageError, match=r"'gemma' refuses messages of system, user: System role not supported; leave"):
        check_chat(Chat.of(SYSTEM), chat_lm("gemma"))
    two = Chat((Message("user", "a"), Message("user", "b")))
    with pytest.raises(UsageError, match=r"refuses messages of user, user, user: Roles must alternate"):
        check_chat(two, chat_lm("gemma"))
    with pytest.raises(UnknownName, match="no role '<s>system': did you mean 'system'"):
        check_chat(Chat((Message("<s>system", "a"),)), chat_lm("chatml"))
    made = chats.tokenizer("chatml")
    for template, told in (
        ("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}", "writes the text of the system 0"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "writes the text of the system 2 times"),
        ("{{ messages[0].nothing.there }}", "refuses messages of system, user: "),
        ("{% for %}", "refuses messages of system, user: "),
    ):
        made.chat_template = template
        with pytest.raises(UsageError, match=told) as refused:
            check_chat(Chat.of(SYSTEM), FrozenLM(lm.model, made, "odd"))
        assert "\n" not in str(refused.value)
    for messages in ([], [Message("user", "a"), Message("assistant", "b")]):
        with pytest.raises(UsageError, match="a conversation ends with the message of the user"):
            conversation(messages)
    slow = ByT5Tokenizer(chat_template=chats.CHATML)
    with pytest.raises(UsageError, match="'slow' has a slow tokenizer"):
        check_chat(Chat(), FrozenLM(lm.model, slow, "slow"))
    with pytest.raises(UsageError, match="is not a whole character"):
        encode(Question("a\ud800", chat=Chat()), chat_lm("chatml"))


def test_the_template_changes_nothing_for_plain_text(lm, chat_lm):
    other = FrozenLM(lm.model, deepcopy(chats.tokenizer("chatml")), "with")
    made = chats.tokenizer("chatml")
    made.chat_template = None
    without = FrozenLM(lm.model, made, "without")
    for text in (*tiny.TEXTS, "a <|im_end|> b"):
        assert other.ids(text) == without.ids(text)
    assert other.end == without.end
    question = Question(ASKED)
    assert answer_ids(tokenised(question, other), "dog", other)[-1] == other.end
    assert answered([question], other, Bare(), Answering(6)) == answered([question], without, Bare(), Answering(6))
