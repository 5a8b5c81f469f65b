"""Real processes, for tests that kill them or run two at once.

They are forked from one that has imported the library, since every start of Python with it takes seconds.
"""

import multiprocessing
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection, wait

_forked = multiprocessing.get_context("forkserver")
_forked.set_forkserver_preload(
    ["shoulders.cli.main", "shoulders.runs.build", "shoulders.retrieval.building", "shoulders.training.loop"]
)
# What a process runs: the command line with `arguments`; and before anything, the place among two.
COMMAND = """
import sys
from shoulders.cli.main import main
sys.argv = ["shoulders", *map(str, arguments)]
main()
"""
_PLACE = """
import os
(rank, port), arguments = arguments[:2], arguments[2:]
os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
os.environ["ACCELERATE_USE_CPU"] = "true"
"""


@contextmanager
def process(code: str, *arguments: object) -> Iterator[tuple[multiprocessing.Process, Connection]]:
    """Run code that finds its `arguments` and a `pipe` to here; what still runs at the end is killed."""
    pipe, its_own = _forked.Pipe()
    running = _forked.Process(target=exec, args=(code, {"arguments": arguments, "pipe": its_own}))
    running.start()
    its_own.close()  # so that the end of the process is the end of the pipe
    with pipe:
        try:
            yield running, pipe
        finally:
            running.kill()
            running.join()


def together(code: str, *each: Sequence[object]) -> None:
    """Run code in several processes at once, one for each of these arguments; all of them end well."""
    with ExitStack() as stack:
        some = [stack.enter_context(process(code, *arguments))[0] for arguments in each]
        running = {one.sentinel: one for one in some}
        while running:  # one that has failed may leave another waiting
            for ended in wait(list(running)):
                running[ended].join()
                assert running.pop(ended).exitcode == 0


def in_two(code: str, *arguments: object) -> None:
    """Run code in two processes that know of each other as PyTorch's launcher lets them."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    together(_PLACE + code, *((rank, port, *arguments) for rank in "01"))
