"""Programs of different scaffolds in one batch: passes that are due at the same time share one forward."""

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
    requests: dict[int, Request] = {}
    states: dict[int, Tensor] = {}
    results: dict[int, Tensor | None] = dict.fromkeys(range(len(programs)))
    while results:
        for number, result in results.items():
            program = programs[number]
            try:
                requests[number] = next(program) if result is None else program.send(result)
            except StopIteration as end:
                states[number] = end.value
        due = {number: request for number, request in requests.items() if not isinstance(request, Pass)} or requests
        results = dict(zip(due, fulfil(list(due.values()), lm), strict=True))
        requests = {number: request for number, request in requests.items() if number not in due}
    return [states[number] for number in range(len(programs))]
