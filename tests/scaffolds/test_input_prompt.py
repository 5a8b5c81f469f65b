import pytest
import torch

from shoulders.backbone.encoder import embedding_norm
from shoulders.backbone.shapes import meta_backbone
from shoulders.engine.batches import encode, training_batch
from shoulders.errors import ContextFull, UsageError
from shoulders.paper.recipes import paper_idpt
from shoulders.runs.cost import meta_scaffold, parts
from shoulders.scaffolds.input_prompt import InputPrompt, InputPromptShape
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary

SMALL = InputPromptShape(length=5, encoder_length=3, head_width=8)


def test_parameter_counts_are_the_papers():
    """Section 2.1: 330K encoder prompt, 7M cross-attention, 2 x 7M self-attention, 3M projection, ~25M in all, 0.3%."""
    recipe = paper_idpt()
    lm = meta_backbone(recipe.backbone.name, torch.bfloat16)
    scaffold = meta_scaffold(recipe.scaffold, lm)
    found = parts(scaffold)
    backbone = sum(weight.numel() for weight in lm.model.parameters())
    encoder = sum(weight.numel() for weight in scaffold.encoder.model.parameters())
    assert lm.width == 4096
    assert backbone == pytest.approx(7.5e9, rel=0.01)
    assert encoder == pytest.approx(110e6, rel=0.01)
    assert found["encoder_prompt"] == pytest.approx(330e3, rel=0.01)
    assert found["across"] == pytest.approx(7.08e6, rel=0.01)
    assert found["layers"] == pytest.approx(2 * 7.08e6, rel=0.01)
    assert found["project"] == pytest.approx(3.15e6, rel=0.01)
    assert sum(found.values()) == pytest.approx(25e6, rel=0.01)
    assert sum(found.values()) / backbone == pytest.approx(0.003, abs=0.0005)


@pytest.mark.parametrize("family", ["t5", "bert", "roberta"])
def test_generated_prompts_start_with_the_norm_of_token_embeddings(lm, tiny_encoder, family):
    encoder = tiny_encoder(family)
    scaffold = InputPrompt(encoder, lm, SMALL, norm=embedding_norm(lm))
    tokens = encoder.source_tokens(["Name a planet.", "Two plus two is four, and three is one more."], 3)
    prompt = scaffold.prompt(tokens)
    assert prompt.shape == (2, 5, lm.width)
    assert prompt.norm(dim=-1).mean().item() == pytest.approx(embedding_norm(lm), rel=0.25)


def test_generated_vectors_start_distinct_and_alike_for_all_inputs(lm, tiny_encoder):
    """P directions, not P copies of one; inputs differ a little, as table 8 of the paper finds after training."""
    encoder = tiny_encoder("bert")
    scaffold = InputPrompt(encoder, lm, InputPromptShape(length=12, encoder_length=3, head_width=8))
    tokens = encoder.source_tokens(["Name a planet.", "Two plus two is four, and three is one more."], 3)
    directions = torch.nn.functional.normalize(scaffold.prompt(tokens), dim=-1)
    between_vectors = (directions @ directions.mT)[:, ~torch.eye(12, dtype=torch.bool)]
    between_inputs = (directions[0] * directions[1]).sum(-1)
    assert between_vectors.mean().item() < 0.4
    assert 0.6 < between_inputs.mean().item() < 0.999


def test_the_encoder_is_neither_trained_nor_saved(lm, tiny_encoder):
    scaffold = InputPrompt(tiny_encoder("bert"), lm, SMALL)
    names = set(scaffold.state_dict())
    assert names == {name for name, _ in scaffold.named_parameters()}
    assert {name.split(".")[0] for name in names} == {
        "encoder_prompt", "queries", "across", "layers", "norm", "project"
    }  # fmt: skip


def test_prompts_depend_on_the_input_and_on_nothing_else_in_the_batch(lm, tiny_encoder):
    encoder = tiny_encoder("bert")
    scaffold = InputPrompt(encoder, lm, SMALL)
    texts = ["Name a planet.", "Two plus two is four, and three is one more."]
    both = scaffold.prompt(encoder.source_tokens(texts, 3))
    assert not torch.allclose(both[0], both[1], atol=1e-3)
    for number, text in enumerate(texts):
        alone = scaffold.prompt(encoder.source_tokens([text], 3))[0]
        torch.testing.assert_close(alone, both[number], rtol=1e-4, atol=1e-5)


def test_with_a_shared_prompt_training_starts_exactly_at_prompt_tuning(lm, tiny_encoder, questions):
    start = from_vocabulary(lm)(5)
    shape = InputPromptShape(length=5, encoder_length=3, head_width=8, base=True)
    scaffold = InputPrompt(tiny_encoder("bert"), lm, shape, start=start)
    prompt = SoftPrompt(start)
    rows = [encode(question, lm, "Paris") for question in questions]
    losses = [
        lm.loss(one.states(lm, batch.given), batch.labels).item()
        for one in (scaffold, prompt)
        for batch in [training_batch(rows, lm, one)]
    ]
    assert losses[0] == losses[1]
    groups = scaffold.learning_rates(1e-3, 2e-2)
    assert [group["lr"] for group in groups] == [1e-3, 2e-2]
    assert sum(len(group["params"]) for group in groups) == len(list(scaffold.parameters()))


def test_the_source_is_cut_to_what_the_encoder_can_read(lm, tiny_encoder):
    encoder = tiny_encoder("bert")
    scaffold = InputPrompt(encoder, lm, SMALL)
    tokens = encoder.source_tokens(["Name a planet. " * 60], scaffold.source_room)
    assert tokens.ids.shape[1] == encoder.context - scaffold.source_room
    assert torch.isfinite(scaffold.prompt(tokens)).all()


def test_the_language_model_is_its_own_encoder_without_a_second_model(lm, questions):
    scaffold = InputPrompt(lm, lm, SMALL, norm=embedding_norm(lm))
    batch = training_batch([encode(question, lm, "Paris") for question in questions], lm, scaffold)
    before = lm.checksum()
    lm.loss(scaffold.states(lm, batch.given), batch.labels).backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in scaffold.parameters())
    assert lm.checksum() == before


def test_a_head_width_that_does_not_divide_is_refused(lm, tiny_encoder):
    with pytest.raises(UsageError, match="head_width 7 does not divide the encoder's width 24"):
        InputPrompt(tiny_encoder("bert"), lm, InputPromptShape(head_width=7))


@pytest.mark.parametrize("encoder", ["bert", "self"])
def test_an_encoder_prompt_that_leaves_no_room_for_a_text_is_refused(lm, tiny_encoder, encoder):
    reader = lm if encoder == "self" else tiny_encoder(encoder)
    shape = InputPromptShape(length=4, encoder_length=reader.context - 7, head_width=8)
    message = rf"needs {reader.context + 1} positions, the model has room for {reader.context}: lower encoder_length"
    with pytest.raises(ContextFull, match=message):
        InputPrompt(reader, lm, shape)


def test_an_encoder_without_a_padding_token_reads_a_batch(lm, tiny_encoder):
    encoder = tiny_encoder("bert")
    scaffold = InputPrompt(encoder, lm, SMALL)
    texts = ["Name a planet.", "Two plus two is four, and three is one more."]
    padded = scaffold.prompt(encoder.source_tokens(texts, 3))
    encoder.tokenizer.pad_token, kept = None, encoder.tokenizer.pad_token
    torch.testing.assert_close(scaffold.prompt(encoder.source_tokens(texts, 3)), padded)
    encoder.tokenizer.pad_token = kept
