"""OpenAI's API, asked by OpenAI's own client: what the server says equals what the library says without a server."""

import math
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from served import GENERATING
from shoulders.backbone.chat import conversation
from shoulders.engine import decode
from shoulders.engine.batches import encode, question_batch
from shoulders.records import Message, Question
from tiny import TEXTS

LONG = 12


def offline(server, name, question, longest=LONG):
    """What the library generates after a question, and its log-probability."""
    lm, scaffold = server.service.lm, server.service.models.get(name).scaffold
    given = question_batch([encode(question, lm)], lm, scaffold)
    (found,) = decode.likeliest(lm, scaffold, given, longest=longest)
    return lm.text(found.ids), found


def complete(client, name, prompt, **how):
    settings = {"model": name, "prompt": prompt, "temperature": 0, "max_tokens": LONG, **how}
    return client.completions.create(**settings)


def test_texts_of_all_scaffolds_at_once_are_those_of_each_alone(server, client):
    asked = [(name, text) for name in GENERATING for text in TEXTS]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda one: complete(client, *one), asked))
    for (name, text), answer in zip(asked, found, strict=True):
        wanted, generated = offline(server, name, Question(text))
        assert answer.choices[0].text == wanted, name
        assert answer.usage.completion_tokens == len(generated.ids)
        assert answer.usage.prompt_tokens == len(server.service.lm.ids(text))
        assert answer.usage.lm_passes == server.service.models.get(name).scaffold.passes
    assert len({answer.choices[0].text for answer in found}) > len(TEXTS)  # scaffolds differ


@pytest.mark.parametrize("name", GENERATING)
def test_a_conversation_is_read_through_the_template_with_the_prompt_in_its_place(server, client, name):
    messages = [("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi"), ("user", TEXTS[0])]
    answer = client.chat.completions.create(
        model=name, temperature=0, max_completion_tokens=LONG,
        messages=[{"role": role, "content": text} for role, text in messages],
    )  # fmt: skip
    wanted, _ = offline(server, name, conversation([Message(*one) for one in messages]))
    assert answer.choices[0].message.content == wanted
    assert answer.choices[0].message.role == "assistant"
    assert answer.object == "chat.completion"


def test_a_stream_is_the_same_text_in_pieces(client):
    whole = complete(client, "suffix", TEXTS[2], n=2, seed=3, temperature=1.0, max_tokens=30)
    texts, ends, last = {0: "", 1: ""}, {}, None
    settings = {"n": 2, "seed": 3, "temperature": 1.0, "max_tokens": 30, "stream_options": {"include_usage": True}}
    for chunk in complete(client, "suffix", TEXTS[2], stream=True, **settings):
        last = chunk
        for choice in chunk.choices:
            assert chunk.usage is None
            texts[choice.index] += choice.text
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
    assert [texts[number] for number in range(2)] == [choice.text for choice in whole.choices]
    assert ends == {choice.index: choice.finish_reason for choice in whole.choices}
    assert last.choices == []
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert texts[0] != texts[1]


def test_chunks_of_a_conversation_have_openais_shape(client):
    parts = [{"type": "text", "text": text} for text in ("Name ", "a planet.")]
    settings = {"model": "prefix", "temperature": 0, "max_tokens": 8, "logprobs": True, "top_logprobs": 2}
    asked = client.chat.completions.create
    chunks = list(asked(messages=[{"role": "user", "content": parts}], stream=True, **settings))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    assert chunks[-1].choices[0].delta.content is None
    logs = [one for chunk in chunks for choice in chunk.choices if choice.logprobs for one in choice.logprobs.content]
    assert len(logs) == 8
    whole = asked(messages=[{"role": "user", "content": "Name a planet."}], **settings)
    assert [one.token for one in whole.choices[0].logprobs.content] == [one.token for one in logs]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content


@pytest.mark.parametrize("name", ["bare", "suffix", "twice"])
def test_log_probabilities_are_the_models_own_in_both_shapes(server, client, name):
    text, generated = offline(server, name, Question(TEXTS[0]))
    found = complete(client, name, TEXTS[0], logprobs=3).choices[0].logprobs
    assert math.isclose(sum(found.token_logprobs), generated.log_probability, abs_tol=1e-3)
    assert found.tokens == [server.service.lm.tokenizer.decode([token]) for token in generated.ids]
    for token, value, top in zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True):
        assert top[token] == pytest.approx(value)
        assert max(top.values()) == pytest.approx(value)  # greedy
    assert found.text_offset[0] == 0
    assert complete(client, name, TEXTS[0], logprobs=0).choices[0].text == text


def test_a_seed_decides_what_is_drawn_whatever_else_runs(client):
    def drawn(seed):
        return (
            complete(client, "prefix", TEXTS[1], temperature=1.0, seed=seed, top_p=0.9, extra_body={"top_k": 50})
            .choices[0]
            .text
        )

    alone = [drawn(seed) for seed in range(4)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(drawn, [*range(4), *range(4)])) == alone * 2
    assert len(set(alone)) > 1


def test_a_stop_text_ends_the_text_before_it_also_in_a_stream(server, client):
    whole, _ = offline(server, "prefix", Question(TEXTS[2]), longest=40)
    stop = whole[9:13]
    cut = whole[: whole.index(stop)]
    settings = {"stop": [stop, "never said"], "max_tokens": 40}
    found = complete(client, "prefix", TEXTS[2], **settings).choices[0]
    assert (found.text, found.finish_reason) == (cut, "stop")
    pieces = [chunk.choices[0] for chunk in complete(client, "prefix", TEXTS[2], stream=True, **settings)]
    assert "".join(piece.text for piece in pieces) == cut
    assert pieces[-1].finish_reason == "stop"


def test_several_prompts_token_ids_and_echo(server, client):
    lm = server.service.lm
    found = complete(client, "bare", TEXTS[:3], n=2, echo=True)
    assert [choice.index for choice in found.choices] == list(range(6))
    for number, choice in enumerate(found.choices):
        text = TEXTS[number // 2]
        assert choice.text == text + offline(server, "bare", Question(text))[0]
    ids = complete(client, "bare", [lm.ids(text) for text in TEXTS[:3]])
    assert [choice.text for choice in ids.choices] == [
        choice.text[len(TEXTS[number]) :] for number, choice in enumerate(found.choices[::2])
    ]
    assert found.usage.prompt_tokens == sum(len(lm.ids(text)) for text in TEXTS[:3])


def test_an_infix_prompt_stands_between_evidence_and_prompt(server, client):
    found = complete(client, "infix", TEXTS[0], extra_body={"evidence": f"{TEXTS[2]}\n"})
    wanted, _ = offline(server, "infix", Question(TEXTS[0], f"{TEXTS[2]}\n"))
    assert found.choices[0].text == wanted != complete(client, "infix", f"{TEXTS[2]}\n{TEXTS[0]}").choices[0].text


def test_penalties_count_text_tokens_alone(client):
    """A penalty changes what repeats; prompt vectors, which are no tokens, change nothing about it."""
    plain = complete(client, "suffix", TEXTS[3], max_tokens=40).choices[0]
    for penalty in ({"frequency_penalty": 2.0}, {"presence_penalty": 2.0}, {"extra_body": {"repetition_penalty": 5.0}}):
        assert complete(client, "suffix", TEXTS[3], max_tokens=40, **penalty).choices[0].text != plain.text


def test_models_are_listed_with_their_parent(server, client):
    cards = {card.id: card for card in client.models.list()}
    assert cards["bare"].parent is None
    assert {cards[name].parent for name in GENERATING[1:]} == {"bare"}
    assert cards["suffix"].placement == "suffix"
    assert (cards["twice"].passes, cards["twice"].first_pass) == (2, "twice:first")
    assert client.models.retrieve("twice:first").kind == "bare"
    assert cards["reranker"].endpoints == ["rerank"]
    assert (
        complete(client, server.service.lm.name, TEXTS[0]).choices[0].text
        == complete(client, "bare", TEXTS[0]).choices[0].text
    )
    first = complete(client, "twice:first", TEXTS[0]).choices[0].text
    assert (
        first
        == complete(client, "bare", TEXTS[0]).choices[0].text
        != complete(client, "twice", TEXTS[0]).choices[0].text
    )


def test_openais_client_raises_its_own_errors(client):
    with pytest.raises(openai.NotFoundError, match="no model 'nobody'"):
        complete(client, "nobody", "a")
    with pytest.raises(openai.BadRequestError, match="needs 6") as caught:
        complete(client, "prefix", "word " * 500, max_tokens=100)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match=r"\(kind reranker\) takes requests for rerank, not for"):
        complete(client, "reranker", "a")
