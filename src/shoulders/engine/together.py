"""Programs of different scaffolds in one batch: every round, all passes that are asked for share one forward."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from shoulders.backbone.frozen import FrozenLM
from shoulders.scaffolds.program import Pass, Program, Request, fulfil


def together(programs: Sequence[Program], lm: FrozenLM) -> list[Float[Tensor, "B T D"]]:
    """Run several programs to their ends, in step, and return the states of each.

    Encoders and Connectors run first, so that a pass through the frozen model waits for all that can share it. Programs
    may ask for different numbers of passes: one that has ended leaves, and the others go on without it.
    """
    asked: dict[int, Request] = {}
    ended: dict[int, Tensor] = {}
    sent: dict[int, Tensor | None] = dict.fromkeys(range(len(programs)))
    while sent:
        for number, result in sent.items():
            try:
                asked[number] = next(programs[number]) if result is None else programs[number].send(result)
            except StopIteration as end:
                ended[number] = end.value
        small = {number: request for number, request in asked.items() if not isinstance(request, Pass)}
        due = small or asked
        sent = dict(zip(due, fulfil(list(due.values()), lm), strict=True))
        asked = {number: request for number, request in asked.items() if number not in due}
    return [ended[number] for number in range(len(programs))]
