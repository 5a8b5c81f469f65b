"""The training loop: what moves, what does not, and that nothing depends on how the work is divided or interrupted."""

import json
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, DistributedType
from safetensors.torch import load_file

from commands import run
from golden import GOLDEN
from processes import in_two, process
from shoulders.engine.batches import encode
from shoulders.errors import CorruptFile, MemoryFull, TrainingDiverged, UsageError
from shoulders.runs.build import new_scaffold
from shoulders.scaffolds.base import KINDS
from shoulders.scaffolds.input_prompt import InputPrompt, InputPromptShape
from shoulders.scaffolds.recursion import Recursion, RecursionShape
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary
from shoulders.training.loop import Hooks, checkpoints, fit
from shoulders.training.losses import ExampleSource, scaffold_loss
from shoulders.training.plan import AVERAGES, TrainPlan
from toys import PLAN, in_processes, layered, small_run, source


def trained(lm, scaffold, plan=PLAN, **rest):
    """The losses of a run."""
    losses: list[float] = []
    hooks = rest.pop("hooks", Hooks(on_step=lambda step: losses.append(step.loss)))
    loss = scaffold_loss(lm, scaffold, average=plan.average)
    fit(scaffold, loss, source(lm, scaffold, plan), plan, hooks=hooks, **rest)
    return losses


def prompts(lm, tiny_encoder):
    yield SoftPrompt(from_vocabulary(lm)(4))
    yield SoftPrompt(from_vocabulary(lm)(4), "suffix")
    for base in (False, True):
        shape = InputPromptShape(length=4, encoder_length=2, head_width=8, base=base)
        yield InputPrompt(tiny_encoder("bert"), lm, shape, norm=1.0, start=from_vocabulary(lm)(4))
    yield InputPrompt(lm, lm, shape, norm=1.0, start=from_vocabulary(lm)(4))
    yield Recursion(lm, RecursionShape(layers=1))
    yield Recursion(lm, RecursionShape(residual=True), SoftPrompt(from_vocabulary(lm)(4)))


NAMES = ["soft_prompt", "soft_prompt_suffix", "input_prompt", "input_prompt_base", "self", "recursion", "residual"]


def test_training_moves_the_whole_scaffold_and_nothing_else(any_lm, tiny_encoder):
    every = layered(any_lm, tiny_encoder)
    some = ("deep infix", "low rank prefix", "scales", "gated")
    names = every if any_lm.config.model_type in ("gpt2", "mistral") else some
    for scaffold in (*prompts(any_lm, tiny_encoder), *(every[name] for name in names)):
        frozen, encoder = any_lm.checksum(), scaffold.encoder and scaffold.encoder.fingerprint()
        before = deepcopy(scaffold.state_dict())
        trained(any_lm, scaffold, replace(PLAN, steps=2), groups=scaffold.learning_rates(0.01))
        trains = {name for name, _ in scaffold.named_parameters()}
        moved = {name for name, now in scaffold.state_dict().items() if (now != before[name]).any()}
        assert moved == trains
        assert any_lm.checksum() == frozen
        assert (scaffold.encoder and scaffold.encoder.fingerprint()) == encoder


@pytest.mark.parametrize("name", NAMES)
def test_golden_trajectories(lm, tiny_encoder, name):
    """Losses as they were when the method was written; a change needs a reason in its commit."""
    scaffold = list(prompts(lm, tiny_encoder))[NAMES.index(name)]
    losses = trained(lm, scaffold, groups=scaffold.learning_rates(0.01))
    assert losses == pytest.approx(GOLDEN[name], rel=1e-4)


def test_losses_fall(lm, tiny_encoder):
    for scaffold in prompts(lm, tiny_encoder):
        losses = trained(lm, scaffold, replace(PLAN, steps=40, learning_rate=0.1))
        assert sum(losses[-5:]) < sum(losses[:5]) - 0.5


@pytest.mark.parametrize("name", ["deep suffix", "low rank suffix", "scales", "input deep", "gated", "gated scales"])
def test_losses_fall_under_scaffolds_of_every_layer(lm, tiny_encoder, name):
    scaffold = layered(lm, tiny_encoder)[name]
    losses = trained(lm, scaffold, replace(PLAN, steps=30), groups=scaffold.learning_rates(0.02, 0.02))
    assert sum(losses[-5:]) < sum(losses[:5]) - 0.5


@pytest.mark.parametrize("kind", ["soft_prompt", "input_prompt"])
def test_a_bf16_backbone_trains_fp32_parameters(tiny_lm, tiny_encoder, kind):
    lm, encoder = tiny_lm("llama", "bfloat16"), tiny_encoder("bert").name
    own = {"encoder": encoder, "encoder_length": 2, "head_width": 8} if kind == "input_prompt" else {}
    choice = KINDS[kind].Config(length=4, **own)
    scaffold, frozen = new_scaffold(choice, lm, seed=0), lm.checksum()
    losses = trained(lm, scaffold, replace(PLAN, steps=40, learning_rate=0.1))
    assert lm.dtype == torch.bfloat16
    assert sum(losses[-5:]) < sum(losses[:5]) - 0.5
    assert {weight.dtype for weight in scaffold.parameters()} == {torch.float32}
    assert lm.checksum() == frozen


@pytest.mark.parametrize("average", AVERAGES)
def test_any_division_into_micro_batches_is_the_same_step(lm, tiny_encoder, average):
    """1 x 8 = 8 x 1."""
    tiny_encoder("bert")  # made before the seed is set
    found = []
    for positions in (1, 64, 100_000):
        torch.manual_seed(5)
        scaffold = list(prompts(lm, tiny_encoder))[2]
        losses = trained(lm, scaffold, replace(PLAN, steps=3, positions_at_once=positions, average=average))
        found.append((losses, scaffold.state_dict()))
    for losses, weights in found[1:]:
        assert losses == pytest.approx(found[0][0], rel=1e-4)
        for name, weight in weights.items():
            torch.testing.assert_close(weight, found[0][1][name], rtol=1e-3, atol=2e-4)


def test_the_loss_is_the_mean_over_tokens_or_over_examples(lm, questions):
    """Over tokens a long answer weighs more than a short one; over examples each is the mean of its own tokens."""
    prompt = SoftPrompt(from_vocabulary(lm)(4))
    targets = ["no", "it was worth the price of the ticket, every minute of it", "four", "the dog"]
    rows = [encode(question, lm, target) for question, target in zip(questions, targets, strict=True)]
    alone = [scaffold_loss(lm, prompt)(prompt, [row]).item() for row in rows]
    lengths = [len(row.target) for row in rows]
    assert max(lengths) > 3 * min(lengths)
    stream = SimpleNamespace(take=lambda _: rows, lm=lm)
    wanted = {
        "tokens": sum(alone) / sum(lengths),
        "examples": sum(one / length for one, length in zip(alone, lengths, strict=True)) / len(rows),
    }
    assert wanted["tokens"] != pytest.approx(wanted["examples"], rel=1e-3)
    for average in AVERAGES:
        step = ExampleSource(stream, len(rows), 64, prompt.length, average).step()
        total = sum(scaffold_loss(lm, prompt, average=average)(prompt, part) for part in step.parts)
        assert (total / step.terms).item() == pytest.approx(wanted[average], rel=1e-5)


def test_weight_decay_does_not_pull_at_the_shared_prompt(lm, tiny_encoder):
    scaffold = list(prompts(lm, tiny_encoder))[3]
    groups = scaffold.learning_rates(0.1)
    assert groups[1]["weight_decay"] == 0.0


def test_the_rate_rises_and_stays_or_falls():
    constant = TrainPlan(steps=100, warmup=0.1)
    assert [round(constant.rate_factor(done), 2) for done in (0, 4, 9, 50, 99)] == [0.1, 0.5, 1.0, 1.0, 1.0]
    linear = replace(constant, decay="linear")
    assert linear.rate_factor(10) == 1.0
    assert linear.rate_factor(55) == pytest.approx(0.5)
    assert linear.rate_factor(99) == pytest.approx(1 / 90)


def test_a_resumed_run_is_the_uninterrupted_one(lm, tiny_encoder, tmp_path):
    plan = replace(PLAN, steps=9, save_every=2, decay="linear", weight_decay=0.1)

    def scaffold():
        torch.manual_seed(3)
        return list(prompts(lm, tiny_encoder))[3]

    whole = scaffold()
    losses = trained(lm, whole, plan, groups=whole.learning_rates(0.01), folder=tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop(step):
        if step.number == 5:
            raise Stop

    broken = scaffold()
    with pytest.raises(Stop):
        trained(lm, broken, plan, groups=broken.learning_rates(0.01), folder=tmp_path / "b", hooks=Hooks(on_step=stop))
    resumed = scaffold()
    rest = trained(lm, resumed, plan, groups=resumed.learning_rates(0.01), folder=tmp_path / "b")
    assert rest == losses[4:]
    for name, weight in resumed.state_dict().items():
        assert torch.equal(weight, whole.state_dict()[name]), name


RESUMED = """
from toys import small_run
def tell(number):
    pipe.send(number)
    pipe.recv()
small_run(*arguments, tell)
"""


def test_a_killed_process_resumes_to_the_same_weights(lm, tmp_path):
    """kill -9 in the middle of a real process, twice; the third finishes."""
    small_run(lm.name, tmp_path / "whole")
    for begins, until in ((1, 8), (8, 16), (16, 24)):
        with process(RESUMED, lm.name, tmp_path / "killed") as (running, pipe):
            for _ in range(24 if until == 24 else 8):  # it goes no further, however late it is killed
                pipe.send("go on")
            step = pipe.recv()
            assert begins <= step <= begins + 1
            while step < until:
                step = pipe.recv()
            if until == 24:
                running.join()
    assert running.exitcode == 0
    final = [sorted(tmp_path.glob(f"{name}/step-*/weights.safetensors"))[-1] for name in ("whole", "killed")]
    assert final[0].parent.name == final[1].parent.name
    assert final[0].read_bytes() == final[1].read_bytes()


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_checkpoint(lm, tmp_path):
    scaffold = SoftPrompt(from_vocabulary(lm)(4))
    calls = []

    def loss(module, rows):
        value = scaffold_loss(lm, scaffold)(module, rows)
        calls.append(1)
        return value * (float("nan") if len(calls) > 3 else 1.0)

    plan = replace(PLAN, steps=10, save_every=1, positions_at_once=100_000)
    with pytest.raises(TrainingDiverged, match=r"the loss is nan at step 4: .*step-00000003; lower the learning rate"):
        fit(scaffold, loss, source(lm, scaffold, plan), plan, folder=tmp_path)
    assert torch.isfinite(scaffold.prompt).all()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000002", "step-00000003"]


def test_a_gradient_that_is_no_number_stops_the_run_before_it_spoils_the_weights(lm, tmp_path):
    """A finite loss can have such a gradient, also in the last step, where no later loss would show it."""
    scaffold = SoftPrompt(from_vocabulary(lm)(4))
    calls = []

    def loss(module, rows):
        value = scaffold_loss(lm, scaffold)(module, rows)
        calls.append(1)
        if len(calls) == 3:
            value.register_hook(lambda gradient: gradient * float("nan"))
        return value

    plan = replace(PLAN, steps=3, save_every=1, positions_at_once=100_000)
    with pytest.raises(TrainingDiverged, match=r"the norm of the gradient is nan at step 3: .*step-00000002;"):
        fit(scaffold, loss, source(lm, scaffold, plan), plan, folder=tmp_path)
    assert torch.isfinite(scaffold.prompt).all()
    assert checkpoints(tmp_path)[-1].name == "step-00000002"


@pytest.mark.parametrize(("start", "wanted"), [(True, [(5.0, 0), (6.0, 4)]), (False, [(3.0, 2), (6.0, 4)])])
def test_the_start_is_a_candidate_for_the_best_if_the_plan_says_so(lm, start, wanted):
    plan, kept = replace(PLAN, steps=4, evaluate_every=2, score_start=start), []
    scores = iter([5.0, 3.0, 6.0] if start else [3.0, 6.0])
    hooks = Hooks(evaluate=lambda: next(scores), on_best=lambda score, step: kept.append((score, step)))
    trained(lm, SoftPrompt(from_vocabulary(lm)(4)), plan, hooks=hooks)
    assert kept == wanted


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_evaluation_that_fails_costs_no_step(lm, tmp_path, error):
    """The steps before it are kept, and a run that goes on scores them first."""
    plan = replace(PLAN, steps=4, evaluate_every=4)
    whole = SoftPrompt(from_vocabulary(lm)(4))
    trained(lm, whole, plan, hooks=Hooks(evaluate=lambda: 1.0))

    def fail():
        raise error

    scaffold = SoftPrompt(from_vocabulary(lm)(4))
    with pytest.raises(error):
        trained(lm, scaffold, plan, folder=tmp_path, hooks=Hooks(evaluate=fail))
    assert checkpoints(tmp_path)[-1].name == "step-00000004"
    again, kept = SoftPrompt(from_vocabulary(lm)(4)), []
    hooks = Hooks(evaluate=lambda: 7.0, on_best=lambda score, step: kept.append((score, step)))
    trained(lm, again, plan, folder=tmp_path, hooks=hooks)
    assert torch.equal(again.prompt, whole.prompt)
    assert kept == [(7.0, 4)]


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors", "progress.json"])
def test_a_broken_checkpoint_is_named_with_the_one_before_it(lm, tmp_path, file):
    plan = replace(PLAN, save_every=2)
    trained(lm, SoftPrompt(from_vocabulary(lm)(4)), plan, folder=tmp_path)
    broken = tmp_path / "step-00000004"
    (broken / file).write_bytes((broken / file).read_bytes()[:20])
    with pytest.raises(CorruptFile, match=r"or delete .*step-00000004 and --resume from step-00000002"):
        trained(lm, SoftPrompt(from_vocabulary(lm)(4)), plan, folder=tmp_path)


def test_only_the_newest_checkpoints_are_kept_and_half_written_ones_ignored(lm, tmp_path):
    scaffold = SoftPrompt(from_vocabulary(lm)(4))
    trained(lm, scaffold, replace(PLAN, steps=5, save_every=1, keep=3), folder=tmp_path)
    (tmp_path / "step-00000009").mkdir()
    assert [path.name[-1] for path in checkpoints(tmp_path)] == ["3", "4", "5"]


def test_the_best_development_score_is_kept(lm, tmp_path):
    scores, kept = iter([1.0, 3.0, 2.0]), []
    hooks = Hooks(evaluate=lambda: next(scores), on_best=lambda score, step: kept.append((score, step)))
    scaffold = SoftPrompt(from_vocabulary(lm)(4))
    plan = replace(PLAN, steps=6, evaluate_every=2)
    progress = fit(scaffold, scaffold_loss(lm, scaffold), source(lm, scaffold, plan), plan, hooks=hooks)
    assert kept == [(1.0, 2), (3.0, 4)]
    assert (progress.best_score, progress.best_step) == (3.0, 4)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"steps": 0}, "training.steps is 0"),
        ({"learning_rate": -1.0}, "above 0"),
        ({"warmup": 2.0}, "between 0 and 1"),
        ({"decay": "cosine"}, "no training.decay 'cosine'"),
    ],
)
def test_plans_that_make_no_sense_are_refused(value, message):
    with pytest.raises(UsageError, match=message):
        replace(PLAN, **value)


def test_two_processes_take_the_same_steps_as_one(lm, tmp_path):
    """Two CPU processes against one: same losses, same weights to rounding."""
    small_run(lm.name, tmp_path / "one")
    in_two("from toys import small_run; small_run(*arguments)", lm.name, tmp_path / "two")
    found = [json.loads((tmp_path / name / "losses.json").read_text()) for name in ("one", "two")]
    assert [one["processes"] for one in found] == [1, 2]
    assert found[1]["losses"] == pytest.approx(found[0]["losses"], rel=1e-4)
    weights = [load_file(checkpoints(tmp_path / name)[-1] / "weights.safetensors") for name in ("one", "two")]
    torch.testing.assert_close(weights[1]["prompt"], weights[0]["prompt"], rtol=1e-3, atol=1e-4)


def test_a_launcher_that_would_share_what_trains_is_refused(lm, monkeypatch):
    """`accelerate launch --use_fsdp`, whose setting only a GPU's state takes over."""
    prompt = SoftPrompt(from_vocabulary(lm)(4))
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(UsageError, match=r"share the trained weights \(FSDP\), .*; backbone.parallel=fsdp"):
        trained(lm, prompt)


def test_the_command_line_trains_in_two_processes(lm, tmp_path):
    """One run folder, one log, one result, whichever process comes first."""
    values = [
        f"backbone.name={lm.name}", "backbone.dtype=float32", "suite.tasks=kind_of", "scaffold.length=4",
        "training.steps=4", "training.batch_size=4", "training.evaluate_every=2", "training.save_every=2",
        "development.limit=2", "test.limit=2", "test.longest=4", "development.longest=4", "training.average=examples",
    ]  # fmt: skip
    command = ["train", "bundled_soft_prompt", *values, "--out"]
    in_processes(["-m", "shoulders", *command, str(tmp_path / "run")], two=True)
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["number"] for line in lines] == [1, 2, 3, 4]
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1
    assert (tmp_path / "run" / "results.json").exists()
    run(*command, tmp_path / "single")
    alone = [json.loads(line) for line in (tmp_path / "single" / "log.jsonl").read_text().splitlines()]
    assert [json.loads(line)["loss"] for line in lines] == pytest.approx([line["loss"] for line in alone], rel=1e-4)


def paused(lm, folder, until, scores, *, evaluate_every=0):
    """Steps of the toy task up to a pause, with the scores that are asked for; what it ended as."""
    prompt, losses, best = SoftPrompt(from_vocabulary(lm)(4)), [], []
    plan = replace(PLAN, steps=8, decay="linear", evaluate_every=evaluate_every)
    remaining = iter(scores)
    hooks = Hooks(lambda step: losses.append(step.loss), lambda: next(remaining), lambda *told: best.append(told))
    progress = fit(
        prompt, scaffold_loss(lm, prompt), source(lm, prompt, plan), plan, folder=folder, hooks=hooks, until=until
    )
    assert next(remaining, None) is None
    return progress, prompt.prompt.detach(), losses, best


@pytest.mark.parametrize(("evaluate_every", "chosen"), [(0, []), (3, [(9.0, 3)])])
def test_a_run_goes_on_from_a_pause_as_if_there_was_none(lm, tmp_path, evaluate_every, chosen):
    """The score of a pause chooses nothing, unless it is due anyway: 9 would be the best."""
    due = [9.0, 2.0] if evaluate_every else []
    whole = paused(lm, tmp_path / "whole", None, [*due, 1.0], evaluate_every=evaluate_every)
    first = paused(lm, tmp_path / "run", 3, [9.0], evaluate_every=evaluate_every)
    assert (first[0].step, first[0].scored_step, first[0].score) == (3, 3, 9.0)
    assert first[3] == chosen
    again = paused(lm, tmp_path / "run", 3, [], evaluate_every=evaluate_every)
    assert again[0] == first[0]
    assert again[2] == []
    rest = paused(lm, tmp_path / "run", None, [*due[1:], 1.0], evaluate_every=evaluate_every)
    assert first[2] + rest[2] == whole[2]
    assert torch.equal(rest[1], whole[1])
    assert first[3] + rest[3] == whole[3]
    assert rest[0] == whole[0]


def test_a_pause_whose_score_failed_is_scored_again(lm, tmp_path):
    def stop():
        raise KeyboardInterrupt

    prompt = SoftPrompt(from_vocabulary(lm)(4))
    with pytest.raises(KeyboardInterrupt):
        fit(
            prompt, scaffold_loss(lm, prompt), source(lm, prompt), PLAN, folder=tmp_path, until=2,
            hooks=Hooks(evaluate=stop),
        )  # fmt: skip
    progress, _, losses, best = paused(lm, tmp_path, 2, [5.0])
    assert (progress.step, progress.score, losses, best) == (2, 5.0, [], [])


def test_a_full_memory_is_one_line_and_the_last_checkpoint_stays(lm, tmp_path):
    prompt, plan = SoftPrompt(from_vocabulary(lm)(4)), replace(PLAN, save_every=1)
    loss, steps = scaffold_loss(lm, prompt), []

    def full(module, rows):
        steps.append(len(rows))
        if len(checkpoints(tmp_path)) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")
        return loss(module, rows)

    with pytest.raises(MemoryFull, match=r"in step 3 \(.*2.00 GiB.*\): lower training.positions_at_once") as refused:
        fit(prompt, full, source(lm, prompt, plan), plan, folder=tmp_path)
    assert "\n" not in str(refused.value)
    assert checkpoints(tmp_path)[-1].name == "step-00000002"
    with pytest.raises(RuntimeError, match="another"):
        fit(prompt, lambda *_: (_ for _ in ()).throw(RuntimeError("another")), source(lm, prompt, plan), plan)


def test_a_checkpoint_keeps_the_random_state_of_an_accelerator(lm, tmp_path, monkeypatch):
    """Where dropout draws from a generator of its own; on a CPU there is none."""
    prompt, restored = SoftPrompt(from_vocabulary(lm)(4)), []
    place, state = torch.device("cuda", 0), torch.tensor([3, 1, 4], dtype=torch.uint8)
    there = SimpleNamespace(
        get_rng_state=lambda _: state, set_rng_state=lambda found, at: restored.append((found.tolist(), at))
    )
    monkeypatch.setattr("shoulders.training.loop._accelerator", lambda _: place)
    monkeypatch.setattr(torch, "get_device_module", lambda _: there)
    trained(lm, prompt, folder=tmp_path, until=2)
    assert restored == []
    trained(lm, prompt, folder=tmp_path)
    assert restored == [([3, 1, 4], place)]
    monkeypatch.undo()
    trained(lm, prompt, replace(PLAN, steps=5), folder=tmp_path)  # goes on where there is no such device


def test_what_does_not_train_clips_nothing(lm):
    """With a rate of 0 for what all inputs share, its gradients are far larger than those of the generator."""
    plan = replace(PLAN, steps=3, clip=1e-4, eps=1e-2)
    moved = []
    for frozen in (False, True):
        torch.manual_seed(0)
        shape = InputPromptShape(length=4, encoder_length=2, head_width=8, base=True)
        prompt = InputPrompt(lm, lm, shape, norm=1.0, start=from_vocabulary(lm)(4))
        prompt.base.requires_grad_(not frozen)
        trained(lm, prompt, plan, groups=prompt.learning_rates(0.01, 0.0))
        moved.append({name: value for name, value in prompt.state_dict().items() if name != "base"})
    assert all(torch.equal(moved[0][name], moved[1][name]) for name in moved[0])


def test_memory_that_is_full_in_the_optimizers_step_is_told(lm, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(torch.optim.AdamW, "step", full)
    with pytest.raises(MemoryFull, match=r"in step 1 \(.*2.00 GiB.*\)"):
        trained(lm, SoftPrompt(from_vocabulary(lm)(4)))
