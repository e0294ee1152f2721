"""How the console script ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rewardkit import __main__ as script

ENDING = """
import atexit, sys, threading, time
import torch
from rewardkit.__main__ import end

class Last:
    def __del__(self):
        print("taken apart")

def late():
    time.sleep(0.2)
    print("a thread ended")

last = Last()
if sys.argv[2] != "alone":
    store = torch.distributed.FileStore(sys.argv[1], 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
atexit.register(lambda: print("exit handler, in the group:", torch.distributed.is_initialized()))
threading.Thread(target=late).start()
print("no line end", end=" ")
end(int(sys.argv[3]))
"""


@pytest.mark.parametrize(
    ("where", "code", "grouped", "more"),
    [("alone", 0, False, "taken apart\n"), ("group", 0, False, ""), ("group", 3, True, "")],
)
def test_a_process_of_a_group_ends_without_taking_the_interpreter_apart(
    where: str, code: int, grouped: bool, more: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDING, str(tmp_path / "store"), where, str(code)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    said = f"no line end a thread ended\nexit handler, in the group: {grouped}\n{more}"
    assert (done.returncode, done.stdout) == (code, said), done.stderr


def test_the_command_s_code_is_the_process_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "main", lambda: 2)
    with pytest.raises(SystemExit) as ended:
        script.run()
    assert ended.value.code == 2
