"""`python -m rewardkit` and the console script."""

import sys

from rewardkit.cli import main


def run() -> None:
    """Exit with the command's code; a command that several processes did together ends in all of them at once."""
    code = main()
    distributed = sys.modules.get("torch.distributed")
    # Left to the interpreter's end, a thread of the group now and then aborts a process that had done its work. One
    # that failed must not wait for the others.
    if code == 0 and distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
    sys.exit(code)


if __name__ == "__main__":
    run()
