"""LangChain's and LlamaIndex's classes for OpenAI's API work unchanged: they say what OpenAI's own client says."""

import asyncio
import gc

import pytest

from tiny import TEXTS

pytestmark = [
    pytest.mark.slow,  # they are imported for seconds
    pytest.mark.filterwarnings("default"),  # of theirs
]
LONG = 12
MODELS = ("bare", "prefix", "suffix", "twice")


@pytest.fixture(scope="module", autouse=True)
def _closed(server):
    """Close the connections that LangChain keeps for all its classes, and those that nobody closes."""
    yield
    from langchain_openai import ChatOpenAI

    ChatOpenAI(model="bare", base_url=f"{server.url}/v1", api_key="none").root_client.close()
    gc.collect()


@pytest.fixture
def said(client):
    """What OpenAI's own client gets from a model: a completion, and the answer in a conversation."""

    def ask(model):
        how = {"model": model, "temperature": 0, "max_tokens": LONG}
        conversation = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": TEXTS[0]}]
        completed = client.completions.create(prompt=TEXTS[0], **how)
        answered = client.chat.completions.create(messages=conversation, **how)
        return completed.choices[0].text, answered.choices[0].message.content, answered.usage

    return ask


@pytest.fixture
def vectors(client):
    return [one.embedding for one in client.embeddings.create(model="encoder", input=list(TEXTS[:2])).data]


@pytest.mark.parametrize("model", MODELS)
def test_langchain_completes_and_chats(server, said, model):
    from langchain_openai import ChatOpenAI, OpenAI

    how = {"model": model, "base_url": f"{server.url}/v1", "api_key": "none", "temperature": 0, "max_tokens": LONG}
    completed, answered, usage = said(model)
    assert OpenAI(**how).invoke(TEXTS[0]) == completed
    assert OpenAI(**how).batch([TEXTS[0], TEXTS[1]])[0] == completed
    assert "".join(OpenAI(**how).stream(TEXTS[0])) == completed
    chat, asked = ChatOpenAI(**how), [("system", "Be brief."), ("user", TEXTS[0])]
    answer = chat.invoke(asked)
    assert answer.content == answered
    assert answer.usage_metadata["output_tokens"] == usage.completion_tokens
    assert answer.usage_metadata["input_tokens"] == usage.prompt_tokens
    pieces = list(chat.stream(asked, stream_usage=True))
    assert "".join(piece.content for piece in pieces) == answered
    assert len(pieces) > 2
    logged = ChatOpenAI(**how, logprobs=True, top_logprobs=2).invoke(asked).response_metadata["logprobs"]["content"]
    assert len(logged) == usage.completion_tokens


def test_langchain_embeds_and_passes_errors_on(server, vectors):
    import openai
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings

    # By default it sends the ids of OpenAI's own tokenizer, which mean other texts to any other model.
    how = {"base_url": f"{server.url}/v1", "api_key": "none"}
    embeds = OpenAIEmbeddings(model="encoder", check_embedding_ctx_length=False, **how)
    for found, wanted in zip(embeds.embed_documents(list(TEXTS[:2])), vectors, strict=True):
        assert found == pytest.approx(wanted, abs=1e-6)
    assert embeds.embed_query(TEXTS[0]) == pytest.approx(vectors[0], abs=1e-6)
    with pytest.raises(openai.NotFoundError, match="nobody"):
        ChatOpenAI(model="nobody", **how).invoke("Hello")
    with pytest.raises(openai.BadRequestError, match="tools"):
        ChatOpenAI(model="bare", **how).bind_tools([{"name": "f", "description": "f", "parameters": {}}]).invoke("a")


def test_both_answer_in_an_event_loop(server, said):
    """Once in this process: LangChain keeps its connections for the first loop."""
    from langchain_openai import ChatOpenAI
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike

    how = {"model": "suffix", "api_key": "none", "temperature": 0, "max_tokens": LONG}
    asked = [("system", "Be brief."), ("user", TEXTS[0])]
    theirs = [ChatMessage(role=role, content=content) for role, content in asked]

    async def ask():
        chat = ChatOpenAI(base_url=f"{server.url}/v1", **how)
        other = OpenAILike(api_base=f"{server.url}/v1", is_chat_model=True, **how)
        found = [piece async for piece in chat.astream(asked)], await other.achat(theirs)
        await chat.root_async_client.close()
        return found

    pieces, whole = asyncio.run(ask())
    _, answered, _ = said("suffix")
    assert "".join(piece.content for piece in pieces) == answered
    assert whole.message.content == answered


@pytest.mark.parametrize("model", MODELS)
def test_llama_index_completes_and_chats(server, said, model):
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike

    how = {"model": model, "api_base": f"{server.url}/v1", "api_key": "none", "temperature": 0, "max_tokens": LONG}
    completed, answered, _ = said(model)
    completes, chats = OpenAILike(**how, is_chat_model=False), OpenAILike(**how, is_chat_model=True)
    assert completes.complete(TEXTS[0]).text == completed
    assert "".join(piece.delta for piece in completes.stream_complete(TEXTS[0])) == completed
    asked = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content=TEXTS[0])]
    assert chats.chat(asked).message.content == answered
    pieces = list(chats.stream_chat(asked))
    assert "".join(piece.delta or "" for piece in pieces) == answered
    assert len(pieces) > 2


@pytest.mark.parametrize("source", ["prefix", "twice"])
def test_llama_index_plain_class_takes_a_model_under_a_name_of_openai(server, saved, said, source):
    """It looks the length of the context up by the name, and knows OpenAI's only."""
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai import OpenAI

    how = {"api_base": f"{server.url}/v1", "api_key": "none", "temperature": 0, "max_tokens": LONG}
    completed, answered, _ = said(source)
    chats, completes = "gpt-4.1-mini", "gpt-3.5-turbo-instruct"
    for name in (chats, completes):
        server.service.models.add(name, str(saved / source))
    try:
        asked = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content=TEXTS[0])]
        assert OpenAI(model=chats, **how).chat(asked).message.content == answered
        pieces = list(OpenAI(model=chats, **how).stream_chat(asked))
        assert "".join(piece.delta or "" for piece in pieces) == answered
        assert len(pieces) > 2
        assert OpenAI(model=completes, **how).complete(TEXTS[0]).text == completed
    finally:
        for name in (chats, completes):
            server.service.models.remove(name)


def test_llama_index_embeds(server, vectors):
    from llama_index.embeddings.openai import OpenAIEmbedding

    embeds = OpenAIEmbedding(model_name="encoder", api_base=f"{server.url}/v1", api_key="none")
    found = embeds.get_text_embedding_batch(list(TEXTS[:2]))
    for one, wanted in zip(found, vectors, strict=True):
        assert one == pytest.approx(wanted, abs=1e-6)
    assert embeds.get_query_embedding(TEXTS[0]) == pytest.approx(vectors[0], abs=1e-6)
