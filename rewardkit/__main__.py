"""`python -m rewardkit` and the console script: how a command ends.

Of several processes that work together (torch.distributed), each ends without taking the interpreter apart. A thread of
gloo may still hold the tensors of the last collective call, though the call has returned; when it lets go of them, it
asks for the interpreter's lock, and a Python (before 3.14) that is being taken apart unwinds a thread that asks. C++
takes that for a fault and aborts the process, whose work was done and saved. `destroy_process_group` does not wait for
these threads as long as a model that was trained over the group keeps it alive.
"""

import atexit
import os
import sys
import threading
from typing import NoReturn

from rewardkit.cli import main


def end(code: int) -> NoReturn:
    """Exit with a code, from the main thread; of several processes: exit handlers run, output is flushed, no more."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        sys.exit(code)
    if code == 0:  # one that failed must not wait for the others
        distributed.destroy_process_group()
    # What the interpreter does before it takes itself apart, in its order. Both have no public name.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def run() -> NoReturn:
    """Exit with the command's code."""
    end(main())


if __name__ == "__main__":
    run()
