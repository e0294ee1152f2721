"""Scripts in two processes that work together (gloo), as torchrun starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
END = """
from rewardkit.__main__ import end
end(0)
"""


def in_two(script: str, folder: Path, *arguments: object, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Run a script in `folder`, with the tests and the repository on its path; does not look at how it ended."""
    path = folder / "script.py"
    path.write_text(script + END)
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(path)]
    whole = [*command, *map(str, arguments)]
    return subprocess.run(
        whole, env=environment, cwd=folder, capture_output=True, text=True, timeout=timeout, check=False
    )
