"""Real processes, for tests that kill them or run several at once.

They are forked from one that has imported the library, since every start of Python with it takes seconds.
"""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

_forked = multiprocessing.get_context("forkserver")
_forked.set_forkserver_preload(
    ["shoulders.cli.main", "shoulders.runs.build", "shoulders.retrieval.building", "shoulders.training.loop"]
)


@contextmanager
def process(code: str, *arguments: object) -> Iterator[tuple[multiprocessing.Process, Connection]]:
    """Run code that finds its `arguments` and a `pipe` to here; what still runs at the end is killed."""
    pipe, its_own = _forked.Pipe()
    with pipe, its_own:
        running = _forked.Process(target=exec, args=(code, {"arguments": arguments, "pipe": its_own}))
        running.start()
        try:
            yield running, pipe
        finally:
            running.kill()
            running.join()
