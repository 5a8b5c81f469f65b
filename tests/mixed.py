"""Scaffolds of all kinds around one model, and a text for each, for tests of what shares a batch."""

from shoulders.engine.batches import encode, question_batch
from shoulders.records import Placement, Question
from shoulders.scaffolds.base import Bare
from shoulders.scaffolds.input_prompt import InputPrompt, InputPromptShape
from shoulders.scaffolds.recursion import Recursion, RecursionShape
from shoulders.scaffolds.soft_prompt import SoftPrompt, from_vocabulary
from tiny import TEXTS
from toys import layered, moved

SMALL = InputPromptShape(length=5, encoder_length=3, head_width=8)


def several(lm, tiny_encoder):
    """Scaffolds of all kinds, prompt lengths, placements and depths; some stand twice to share what they train."""
    prompt = SoftPrompt(from_vocabulary(lm)(6))
    twice = Recursion(lm, RecursionShape(layers=1))
    encoder = tiny_encoder("bert")
    deep = {name: moved(one) for name, one in layered(lm, tiny_encoder).items()}
    return [
        Bare(),
        prompt,
        SoftPrompt(from_vocabulary(lm, seed=1)(3), Placement.INFIX),
        SoftPrompt(from_vocabulary(lm, seed=2)(9), Placement.SUFFIX),
        InputPrompt(encoder, lm, SMALL),
        InputPrompt(encoder, lm, SMALL, placement=Placement.SUFFIX),
        InputPrompt(lm, lm, SMALL),
        Recursion(lm, RecursionShape(passes=1, layers=2, before=True, after=True)),
        twice,
        Recursion(lm, RecursionShape(passes=3, layers=2, shared=True), SoftPrompt(from_vocabulary(lm)(4))),
        prompt,
        twice,
        moved(Recursion(lm, RecursionShape(rank=3, keys_values=True))),
        moved(Recursion(lm, RecursionShape(passes=3, rank=2, keys_values=True), SoftPrompt(from_vocabulary(lm)(2)))),
        *deep.values(),
        Recursion(lm, RecursionShape(layers=1), deep["low rank prefix"]),
        Recursion(lm, RecursionShape(layers=1), deep["deep prefix"]),
        deep["low rank prefix"],
        deep["gated"],
    ]


def asked(lm, scaffolds):
    """A batch of its own for each scaffold: questions of different lengths, two of them where it stands first."""
    for number, scaffold in enumerate(scaffolds):
        questions = [Question(TEXTS[number % len(TEXTS)], evidence="The sun is a star. " if number % 2 else "")]
        if number % 3 == 0:
            questions.append(Question(TEXTS[(number + 1) % len(TEXTS)]))
        yield question_batch([encode(question, lm) for question in questions], lm, scaffold)


def one(lm, scaffold, text, evidence=""):
    """A single row."""
    return question_batch([encode(Question(text, evidence), lm)], lm, scaffold)
