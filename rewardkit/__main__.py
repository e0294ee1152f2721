"""`python -m rewardkit` and the console script."""

import sys

from rewardkit.cli import main


def run() -> None:
    """Exit with the command's code."""
    sys.exit(main())


if __name__ == "__main__":
    run()
