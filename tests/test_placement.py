"""Every kind of scaffold on an accelerator, without one: a pretended device, whose tensors meet no others.

What runs there are the usual functions: training, decoding, ranking, reading evidence, the scheduler, retrieval. They
give what they give on the CPU, so that a value that was lost on the way is seen, too.
"""

from dataclasses import replace

import pytest
import torch

from mixed import SMALL, one
from pretended import DEVICE, Elsewhere, placed, placed_encoder, pretended, spread
from rankers import PASSAGES, QUESTION, save_bert
from shoulders.backbone.checkpointing import checkpointing
from shoulders.backbone.encoder_decoder import FrozenEncoderDecoder
from shoulders.engine.batches import encode
from shoulders.engine.decode import generate_with_transformers
from shoulders.engine.inference import Answering, Sampling, answer, rank, sample
from shoulders.engine.precomputed import Contexts, StateStore
from shoulders.engine.requests import Request, SamplingParameters
from shoulders.engine.scheduler import Scheduler
from shoulders.evaluation.perplexity import perplexity
from shoulders.records import Placement, Question
from shoulders.retrieval.bi_encoder import BiEncoder
from shoulders.retrieval.reranker import Group, Pair, Reranker
from shoulders.scaffolds.base import KINDS, Bare, Scaffold
from shoulders.scaffolds.deep_prompt import DeepPrompt
from shoulders.scaffolds.input_prompt import InputPrompt
from shoulders.scaffolds.low_rank import LowRank, Scales
from shoulders.scaffolds.recursion import Recursion, RecursionShape
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary
from shoulders.training.distillation import Teacher, TeacherChoice
from shoulders.training.loop import Hooks, fit
from shoulders.training.losses import scaffold_loss
from tiny import FAMILIES, TEXTS, save_encoder_decoder
from toys import PLAN, Fact, layered, moved, source

ASKED = [Question(TEXTS[1], evidence="France is in Europe. "), Question(TEXTS[0])]
TARGETS = ["the planet Mars", "Paris"]
CHOICES = [["Mars", "the Moon"], ["Paris", "London is large"]]
SOME = ("soft infix", "input suffix", "recursion", "deep suffix", "input deep", "gated")


def kinds(lm, tiny_encoder):
    """Scaffolds of all kinds and placements by name, away from their starts."""
    prompts = {f"soft {place}": SoftPrompt(from_vocabulary(lm)(4), place) for place in Placement}
    encoder = tiny_encoder("bert")
    return {
        "bare": Bare(),
        **prompts,
        **{f"input {place}": InputPrompt(encoder, lm, SMALL, placement=place) for place in Placement},
        "input self": InputPrompt(lm, lm, SMALL),
        "recursion": Recursion(lm, RecursionShape(layers=1, before=True, after=True)),
        "recursion of a prompt": Recursion(lm, RecursionShape(layers=1, residual=True), prompts["soft suffix"]),
        "recursion that writes": moved(Recursion(lm, RecursionShape(rank=4, keys_values=True), prompts["soft infix"])),
        **{name: moved(one) for name, one in layered(lm, tiny_encoder).items()},
    }


def step(lm, scaffold):
    """The loss of a training step and its gradients, in memory."""
    rows = [encode(question, lm, target) for question, target in zip(ASKED, TARGETS, strict=True)]
    scaffold.zero_grad()
    loss = scaffold_loss(lm, scaffold)(scaffold, rows)
    if loss.requires_grad:
        loss.backward()
    return loss.detach().cpu(), {name: weight.grad.cpu() for name, weight in scaffold.named_parameters()}


def asked(lm, scaffold):
    """What it answers, and how it ranks choices."""
    return answer(ASKED, lm, scaffold, Answering(longest=3)), rank(ASKED, CHOICES, lm, scaffold)


def check_family(lm, tiny_encoder, folder, names=None, elsewhere=placed):
    """Scaffolds that are loaded beside a model elsewhere do what they do on the CPU."""
    made = {name: one for name, one in kinds(lm, tiny_encoder).items() if names is None or name in names}
    wanted = {name: (step(lm, scaffold), asked(lm, scaffold)) for name, scaffold in made.items()}
    for name, scaffold in made.items():
        scaffold.around(lm).made_for(lm).save_pretrained(folder / name)
    with pretended():
        there = elsewhere(lm)
        for name, (trained, told) in wanted.items():
            scaffold = Scaffold.load(folder / name, there)
            assert all(isinstance(weight, Elsewhere) for weight in scaffold.parameters())
            loss, gradients = step(there, scaffold)
            torch.testing.assert_close(loss, trained[0], rtol=1e-4, atol=1e-4)
            for weight, gradient in gradients.items():
                torch.testing.assert_close(gradient, trained[1][weight], rtol=1e-2, atol=1e-3, msg=f"{name} {weight}")
            answers, scores = asked(there, scaffold)
            assert answers == told[0]
            assert [one for some in scores for one in some] == pytest.approx(
                [one for some in told[1] for one in some], rel=1e-3
            )
    return made


def test_every_kind_there_is_as_here(lm, tiny_encoder, tmp_path):
    made = check_family(lm, tiny_encoder, tmp_path)
    ours = {kind for kind in KINDS.names() if KINDS[kind].__module__.startswith("shoulders.")}
    assert {scaffold.kind for scaffold in made.values()} == ours


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_other_families_there_are_as_here(family, tiny_lm, tiny_encoder, tmp_path):
    check_family(tiny_lm(family), tiny_encoder, tmp_path, ("soft infix", "input deep"))


def test_layers_on_two_devices_are_as_one_model(lm, tiny_encoder, tmp_path):
    check_family(lm, tiny_encoder, tmp_path, ("low rank prefix", "deep infix", "recursion that writes"), spread)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_all_kinds_on_two_devices(family, tiny_lm, tiny_encoder, tmp_path):
    made = check_family(tiny_lm(family), tiny_encoder, tmp_path, (*SOME, "scales"), spread)
    wanted = run_scheduler(tiny_lm(family), made.values())
    with pretended():
        there = spread(tiny_lm(family))
        assert run_scheduler(there, [Scaffold.load(tmp_path / name, there) for name in made]) == wanted


def test_kinds_that_are_made_there_train_there(lm, tiny_encoder):
    """As `shoulders train` makes them: around a model that is already on its device."""
    with pretended():
        there = placed(lm)
        every = kinds(there, lambda family: placed_encoder(tiny_encoder(family)))
        made = {name: every[name] for name in SOME}
        made["normal"] = DeepPrompt.new(DeepPrompt.Config(length=3, init="normal"), there)
        for scaffold in made.values():
            assert step(there, scaffold.around(there))[0].isfinite()


@pytest.mark.parametrize("name", ["soft suffix", "deep prefix", "recursion"])
def test_layers_are_computed_again_there(lm, tiny_encoder, name):
    made = kinds(lm, tiny_encoder)[name].around(lm)
    wanted = step(lm, made)
    with pretended(), checkpointing():
        there = placed(lm)
        loss, gradients = step(there, made.around(there))
    torch.testing.assert_close((loss, gradients), wanted, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("family", [one for one in FAMILIES[1:] if one != "mixtral"])  # counts on CPUs alone
def test_all_families_there_are_as_here(family, tiny_lm, tiny_encoder, tmp_path):
    check_family(tiny_lm(family), tiny_encoder, tmp_path, SOME)


def test_a_misplaced_tensor_is_caught_in_every_kind(lm, tiny_encoder, tmp_path):
    """The first trained tensor of each stays behind; numbers without a dimension may, as with CUDA.

    Edits of linear layers, and keys and values before the text, follow their layer: they change nothing.
    """
    made = kinds(lm, tiny_encoder)
    losses = {name: step(lm, scaffold)[0].item() for name, scaffold in made.items()}
    for name, scaffold in made.items():
        scaffold.around(lm).made_for(lm).save_pretrained(tmp_path / name)
    with pretended():
        there = placed(lm)
        for name in made:
            scaffold = Scaffold.load(tmp_path / name, there)
            tensors = [(path, weight) for path, weight in scaffold.named_parameters() if weight.dim()]
            for path, weight in tensors[:1]:
                owner, _, last = path.rpartition(".")
                module = scaffold.get_submodule(owner)
                setattr(module, last, torch.nn.Parameter(weight.detach().cpu()))
                if name == "deep prefix" or type(module) in (LowRank, Scales):
                    assert step(there, scaffold)[0].item() == pytest.approx(losses[name], rel=1e-3)
                else:
                    with pytest.raises(RuntimeError, match="same device"):
                        step(there, scaffold)
                setattr(module, last, weight)


def test_a_misplaced_input_or_part_of_the_model_is_caught(lm):
    with pretended():
        there = placed(lm)
        given = one(there, Bare(), TEXTS[0])
        assert Bare().states(there, given).device == DEVICE
        length = given.embeds.shape[1]
        for wrong in ({"embeds": given.embeds.cpu()}, {"mask": torch.ones(1, length, dtype=torch.bool)}):
            with pytest.raises(RuntimeError, match="same device"):
                SoftPrompt(from_vocabulary(there)(4)).to(DEVICE).states(there, replace(given, **wrong))
        with pytest.raises(RuntimeError, match="same device"):
            there.embed(torch.tensor([[1]]))
        norm = there.model.base_model.norm
        norm.weight = torch.nn.Parameter(norm.weight.cpu(), requires_grad=False)
        with pytest.raises(RuntimeError, match="same device"):
            Bare().states(there, given)


def test_a_pretended_device_is_as_strict_as_a_real_one():
    with pretended():
        rows, here = torch.arange(6.0, device=DEVICE).view(2, 3), torch.ones(3)
        assert rows.device == (rows + 1).device == torch.zeros_like(rows).device == rows.new_zeros(1).device == DEVICE
        assert (rows * torch.tensor(2.0)).tolist() == [[0.0, 2.0, 4.0], [6.0, 8.0, 10.0]]
        assert rows[torch.tensor([1])].tolist() == [[3.0, 4.0, 5.0]]
        assert rows.to("cpu").device.type == "cpu"
        rows[0] = here  # a copy
        assert rows.sum().item() == 15.0
        for wrong in (
            lambda: rows + here,
            lambda: torch.cat([rows[0], here]),
            lambda: torch.cat([rows[0], rows.sum()[None].cpu()]),
            lambda: here[torch.tensor([0], device=DEVICE)],
            lambda: here.add_(rows.sum()),
            lambda: rows @ here,
            lambda: rows.index_put((torch.tensor([0]),), here),
        ):
            with pytest.raises(RuntimeError, match="same device"):
                wrong()
        with pytest.raises(RuntimeError, match="numpy"):
            rows.numpy()


def run_scheduler(lm, scaffolds):
    """What a scheduler answers: greedy, sampled with everything that changes it, and scored."""
    run = Scheduler(lm, memory_bytes=1 << 24, prefill_tokens=16)
    mixed = SamplingParameters(temperature=0.7, top_k=20, top_p=0.9, seed=3, presence_penalty=0.1,
                               repetition_penalty=1.2, logprobs=2)  # fmt: skip
    tickets = []
    for number, scaffold in enumerate(scaffolds):
        given = one(lm, scaffold, TEXTS[number % len(TEXTS)], "The sun is a star. " if number % 2 else "")
        how = {"sampling": mixed, "count": 2, "shortest": 2} if number % 3 == 1 else {}
        tickets.append(run.submit(Request(scaffold=scaffold, given=given, ids=(5, 6), longest=3 + number % 2, **how)))
        if number % 3 == 0:
            scored = Request(scaffold=scaffold, given=given, continuations=(tuple(lm.ids("a star")), (5, 6, 7)))
            tickets.append(run.submit(scored))
    while run.step():
        pass
    results = [ticket.result(0) for ticket in tickets]
    return [
        ([branch.ids for branch in one.branches], [round(score.log_likelihood, 2) for score in one.scores])
        for one in results
    ]


def test_the_scheduler_there_is_as_here(lm, tiny_encoder, tmp_path):
    made = {name: one for name, one in kinds(lm, tiny_encoder).items() if name in (*SOME, "bare", "low rank prefix")}
    for name, scaffold in made.items():
        scaffold.around(lm).made_for(lm).save_pretrained(tmp_path / name)
    wanted = run_scheduler(lm, made.values())
    with pretended():
        there = placed(lm)
        assert run_scheduler(there, [Scaffold.load(tmp_path / name, there) for name in made]) == wanted


def trained(lm, folder, until=None):
    """A prompt after some steps with stored states, a teacher and checkpoints, and its losses."""
    prompt, losses = SoftPrompt(from_vocabulary(lm)(4), Placement.SUFFIX).to(lm.device), []
    loss = scaffold_loss(lm, prompt, contexts=Contexts(lm, folder / "contexts"))
    hooks = Hooks(on_step=lambda done: losses.append(done.loss))
    fit(prompt, loss, source(lm, prompt), PLAN, folder=folder / "run", hooks=hooks, until=until)
    return losses, prompt.prompt.detach().cpu()


def test_training_with_stores_and_checkpoints_there_is_as_here(lm, tmp_path):
    losses, prompt = trained(lm, tmp_path / "here")
    with pretended():
        there = placed(lm)
        first, _ = trained(there, tmp_path / "there", until=2)
        rest, found = trained(there, tmp_path / "there")
        assert first + rest == pytest.approx(losses, rel=1e-3)
        torch.testing.assert_close(found, prompt, rtol=1e-2, atol=1e-3)
        store = StateStore(tmp_path / "states", there)
        rows = [[1, 2, 3], [4, 5]]
        fresh = store.states(rows)
        assert fresh.device == DEVICE
        assert torch.equal(store.states(rows), fresh)
        states = [lm.states(lm.embed(torch.tensor([row])))[0] for row in rows]
        torch.testing.assert_close(fresh.cpu()[0], states[0], rtol=1e-3, atol=1e-3)
        assert there.fingerprint() == lm.fingerprint()


def taught(lm, folder):
    """The loss of rows that a teacher teaches."""
    teacher = Teacher(lm, Bare(), Fact("The sun is a star. "), TeacherChoice(weight=0.5, top=8), folder)
    rows = [encode(question, lm, target) for question, target in zip(ASKED, TARGETS, strict=True)]
    rows = [replace(row, taught=teacher.row(Question("The sun is a star. Why?"), row.target)) for row in rows]
    loss = scaffold_loss(lm, prompt := SoftPrompt(from_vocabulary(lm)(4)).to(lm.device), teacher=teacher)
    return [loss(prompt, rows).item() for _ in range(2)]  # computed, and read


def others(lm, folder):
    """Figures of what else asks a model: a teacher, sampling, transformers' loop, text, retrieval, a re-ranker."""
    device = str(lm.device)
    prompt = SoftPrompt(from_vocabulary(lm)(4)).to(lm.device)
    retriever = BiEncoder.load(str(folder / "bert"), dtype="float32", device=device)
    reranker = Reranker(retriever.passage, dropout=0.0, order_weight=1.0)
    group = Group(QUESTION, PASSAGES, ("Harald Fairhair",), tuple(float(n) for n in range(len(PASSAGES))))
    with torch.no_grad():
        for head in (reranker.span, reranker.relevance):
            head.weight.copy_(torch.linspace(-1, 1, head.weight.numel()).view(head.weight.shape))
    loss = reranker([group])
    loss.backward()
    t5 = FrozenEncoderDecoder.load(str(folder / "t5"), dtype="float32", device=device)
    ids = [t5.source_ids(text, 20)[0] for text in TEXTS[:2]]
    return {
        "taught": taught(lm, folder / f"taught-{lm.device.type}"),
        "samples": [one.text for some in sample(ASKED, lm, prompt, Sampling(2), Answering(longest=4)) for one in some],
        "beams": generate_with_transformers(lm, prompt, one(lm, prompt, TEXTS[0]), longest=4, num_beams=2),
        "perplexity": perplexity(lm, prompt, [[1, 2, 3, 4], [5, 6, 7, 8]]).nats,
        "vectors": retriever.encode_passages(*zip(*PASSAGES, strict=True)).sum(1).tolist(),
        "reranker": [loss.item(), *reranker.frozen().scores([Pair(QUESTION, *one) for one in PASSAGES])],
        "t5": [one.ids for one in t5.likeliest(ids, longest=4)] + t5.score(ids, [[[5, 6]], [[7], [8, 9]]]),
    }


def test_whatever_else_asks_a_model_there_is_as_here(lm, tmp_path):
    save_bert(tmp_path / "bert")
    save_encoder_decoder("t5", tmp_path / "t5")
    wanted = others(lm, tmp_path)
    with pretended():
        found = others(placed(lm), tmp_path)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        flat, own = (torch.tensor(flattened(one)) for one in (found[name], value)) if name != "samples" else (0, 0)
        if name == "samples":
            assert found[name] == value
        else:
            torch.testing.assert_close(flat, own, rtol=1e-3, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


def flattened(value):
    """The numbers in nested lists."""
    return [one for part in value for one in flattened(part)] if isinstance(value, list | tuple) else [float(value)]
