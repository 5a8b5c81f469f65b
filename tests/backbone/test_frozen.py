import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, Phi3Config

from shoulders.backbone import frozen
from shoulders.backbone.frozen import UNLIMITED, FrozenLM, positions_of
from shoulders.errors import ContextFull, SourceNotFound, UnknownName, UsageError
from shoulders.records import IGNORE
from tiny import GROUPED, tokenizer


def test_fingerprint_tells_models_apart_and_ignores_the_type(tiny_lm):
    assert tiny_lm("llama").fingerprint() == tiny_lm("llama", "bfloat16").fingerprint()
    assert tiny_lm("llama").fingerprint() != tiny_lm("qwen2").fingerprint()


def test_checksum_sees_the_smallest_change(folders, tiny_lm):
    tiny_lm("llama")
    other = FrozenLM.load(str(folders / "llama"), dtype="float32", device="cpu")
    before = other.checksum()
    assert before == tiny_lm("llama").checksum()
    weight = next(other.model.parameters())
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    assert other.checksum() != before


def test_nothing_of_the_model_asks_for_gradients(any_lm):
    assert not any(weight.requires_grad for weight in any_lm.model.parameters())
    assert not any_lm.model.training


def test_nll_is_cross_entropy_of_each_row(lm):
    states, labels = torch.randn(3, 5, lm.width), torch.randint(0, lm.vocabulary, (3, 5))
    labels[0, :2] = IGNORE
    labels[2] = IGNORE
    found = lm.nll(states, labels)
    for row in range(3):
        wanted = F.cross_entropy(lm.logits(states[row]), labels[row], ignore_index=IGNORE, reduction="sum")
        assert found[row].item() == pytest.approx(wanted.item(), rel=1e-5)
    mean = F.cross_entropy(lm.logits(states).flatten(0, 1), labels.flatten(), ignore_index=IGNORE)
    assert lm.loss(states, labels).item() == pytest.approx(mean.item(), rel=1e-5)


def test_logits_that_are_computed_again_have_the_same_gradient(lm, monkeypatch):
    states = torch.randn(2, 9, lm.width, requires_grad=True)
    labels = torch.randint(0, lm.vocabulary, (2, 9))
    (whole,) = torch.autograd.grad(lm.loss(states, labels), states)
    monkeypatch.setattr(frozen, "SCORED_AT_ONCE", 4)
    (pieces,) = torch.autograd.grad(lm.loss(states, labels), states)
    torch.testing.assert_close(pieces, whole, rtol=1e-5, atol=1e-7)


def test_gradients_reach_the_input(any_lm):
    embeds = torch.randn(1, 4, any_lm.width, requires_grad=True)
    any_lm.states(embeds).pow(3).sum().backward()
    assert embeds.grad is not None
    assert embeds.grad.abs().sum() > 0


def test_a_capped_head_is_found(tiny_lm):
    lm = tiny_lm("gemma2")
    assert lm.logits(torch.randn(4, lm.width) * 100).abs().max() <= 1.0


def test_a_continuation_is_tokenised_as_part_of_the_whole(lm):
    text, answer = "What is the capital of France?", "Paris"
    whole = lm.ids(f"{text} {answer}")
    assert lm.ids(text) + lm.continuation_ids(text, answer) == whole


def test_longrope_reads_no_further_than_its_rows_are_independent():
    """Beyond the length of its pretraining a long row changes the rotations of all rows of its batch."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4,
            "short_factor": [1.0] * 4, "long_factor": [9.0] * 4}  # fmt: skip
    config = Phi3Config(**GROUPED, original_max_position_embeddings=16, rope_parameters=rope)
    long = FrozenLM(AutoModelForCausalLM.from_config(config), tokenizer())
    assert long.context == 16
    with pytest.raises(ContextFull, match="16"):
        long.check_room("a text", 17, "shorten it")
    vectors = long.embed(torch.arange(3, 13)[None])
    both = torch.cat([vectors, torch.zeros(1, 6, long.width)], 1).repeat(2, 1, 1)
    torch.testing.assert_close(long.states(both)[:1, :10], long.states(vectors), rtol=1e-4, atol=1e-4)


def test_context_and_types_are_refused_with_both_numbers(lm):
    with pytest.raises(ContextFull, match="needs 200 positions, the model has room for 128: make it shorter"):
        lm.check_room("a prompt", 200, "make it shorter")
    with pytest.raises(UnknownName, match="did you mean 'bfloat16'"):
        FrozenLM.load(lm.name, dtype="bfloat6")


def test_a_model_without_an_end_token_cannot_answer(lm):
    bare = FrozenLM(lm.model, lm.tokenizer.__class__(tokenizer_object=lm.tokenizer.backend_tokenizer), "nameless")
    bare.model.generation_config.eos_token_id, kept = None, bare.model.generation_config.eos_token_id
    with pytest.raises(SourceNotFound, match="neither the tokenizer nor the model 'nameless' has an end-of-sequence"):
        _ = bare.end
    bare.model.generation_config.eos_token_id = kept


def test_an_end_token_of_the_model_serves_where_the_tokenizer_has_none(lm):
    other = FrozenLM(lm.model, lm.tokenizer.__class__(tokenizer_object=lm.tokenizer.backend_tokenizer), "nameless")
    assert other.end == lm.model.generation_config.eos_token_id


@pytest.mark.parametrize("family", ["mamba", "bart"])
def test_models_that_cannot_serve_are_refused_when_they_are_loaded(tiny_lm, family):
    """They load as causal models and would answer wrongly, without any error."""
    with pytest.raises(SourceNotFound, match=r"For?CausalLM .*cannot serve as backbone"):
        tiny_lm(family)


def test_every_source_of_the_number_of_positions(lm):
    class Config:
        pass

    for name in ("max_position_embeddings", "max_seq_len", "seq_length"):
        config = Config()
        setattr(config, name, 77)
        assert positions_of(config, None) == 77
    assert positions_of(Config(), None) == UNLIMITED
    lm.tokenizer.model_max_length, kept = -1, lm.tokenizer.model_max_length
    assert positions_of(Config(), lm.tokenizer) == UNLIMITED
    lm.tokenizer.model_max_length = 99
    assert positions_of(Config(), lm.tokenizer) == 99
    lm.tokenizer.model_max_length = kept


def test_only_scored_positions_reach_the_vocabulary(lm, monkeypatch):
    """The saving that training lives on: a fifth of a step, and most of its memory."""
    rows = []
    head = lm.head
    monkeypatch.setattr(lm, "head", lambda states: rows.append(states.shape[0]) or head(states))
    labels = torch.full((3, 50), IGNORE)
    labels[0, -2:], labels[2, -1] = 5, 6
    lm.nll(torch.randn(3, 50, lm.width), labels)
    assert rows == [3]


@pytest.mark.parametrize("device", ["cudda", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(lm, device):
    with pytest.raises(
        UsageError, match=rf"backbone\.device={device} cannot be used here .*'auto' picks a device of this machine"
    ):
        FrozenLM.load(lm.name, device=device)


def test_the_last_position_of_a_batch_reaches_the_vocabulary_as_rows(lm, monkeypatch):
    """Given [B, 1, D] cut out of [B, T, D], PyTorch copies the V x D matrix B times: 3 GB for 64 texts of SmolLM2."""
    given = []
    head = lm.head
    monkeypatch.setattr(lm, "head", lambda states: given.append(states) or head(states))
    states = torch.randn(4, 5, lm.width)[:, -1:]
    found = lm.logits(states)
    assert found.shape == (4, 1, lm.vocabulary)
    torch.testing.assert_close(found, head(states))
    assert given[0].dim() == 2
