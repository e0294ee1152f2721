"""Nothing hangs, breaks or runs: the hostile corpus and 2,000 random texts, in every kind of thread and process."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hostile import HOSTILE, fuzz_text
from hypothesis import given, settings
from hypothesis import strategies as st

from verifiers.core import Outcome
from verifiers.maths import MathVerifier
from verifiers.scalars import EqualityPolicy

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def verifier() -> MathVerifier:
    return MathVerifier()


def script(code: str) -> str:
    """What a program prints that runs in an interpreter of its own."""
    lines = [f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]", code]
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("case", HOSTILE)
def test_every_case_is_answered_and_right(case: str, verifier: MathVerifier) -> None:
    response, reference, equal = HOSTILE[case]
    start = time.process_time()
    verdict = verifier.compare(response, reference)
    assert "defect" not in (verdict.kind, verifier.verify(response, reference).kind)
    assert time.process_time() - start < 3.0  # what is not bounded takes minutes
    if equal is not None:
        assert verdict.outcome is (Outcome.CORRECT if equal else Outcome.INCORRECT), verdict


PLAIN = MathVerifier(equality_policy=EqualityPolicy(symbolic=False))


@settings(max_examples=2_000, deadline=None)
@given(st.randoms(use_true_random=False))
def test_random_texts_are_answered(draw: random.Random) -> None:
    one, two = fuzz_text(draw), fuzz_text(draw)
    start = time.process_time()
    assert "defect" not in (PLAIN.verify(one, two).kind, PLAIN.compare(one, two).kind)
    assert PLAIN.compare(one, one).score != 0.0 or not one.strip()
    assert time.process_time() - start < 3.0


def test_nothing_that_is_judged_is_run() -> None:
    """No code is compiled or executed, nothing imported, opened or started, once the first verdict is given."""
    found = script(
        """
import json, random
from pathlib import Path
from hostile import HOSTILE, fuzz_text
from verifiers.maths import MathVerifier
from verifiers.scalars import EqualityPolicy
verifier = MathVerifier(equality_policy=EqualityPolicy(symbolic=False))
warm = ["1/2", "sqrt(2)", "x+1", "x>3", "1e3", "3 cm", r"\\sin 1", r"\\arctan(e^i)", "5.5!", "½", r"x^{\\pi}"]
for text in warm:
    for other in warm:
        verifier.compare(text, other)
draw = random.Random(3)
judged = [(response, reference) for response, reference, _ in HOSTILE.values()]
judged += [(row["answer"], row["reference"]) for row in map(json.loads, Path("tests/answer_pairs.jsonl").open())]
judged += [(fuzz_text(draw), fuzz_text(draw)) for _ in range(700)]
events, bad = set(), ("exec", "compile", "import", "open", "os.", "subprocess.", "socket.", "ctypes.", "pickle.")
watching = True
def hook(event, arguments):
    if watching and event.startswith(bad):
        events.add((event, str(arguments)[:200]))
sys.addaudithook(hook)
for response, reference in judged:
    verifier.compare(response, reference)
    verifier.verify(response, reference)
watching = False
print(len(judged), sorted(events))
"""
    )
    asked, events = found.strip().split(" ", 1)
    assert int(asked) > 2_500 and events == "[]"
    assert not Path("/tmp/rewardkit-was-here").exists()


def test_the_worker_runs_nothing_either() -> None:
    """What reaches sympy are trees; in the worker no process, socket or file for writing is opened for them."""
    found = script(
        """
from hostile import HOSTILE
from verifiers.reading import read
from verifiers.symbolic import judge
from verifiers.trees import encode
import signal, sympy
judge({"a": encode(read("x+1").tree), "b": encode(read("1+x").tree)})
events, bad = set(), ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.", "socket.", "pickle.")
def hook(event, arguments):
    if event.startswith(bad) or (event == "open" and str(arguments[1])[:1] in "wax"):
        events.add((event, str(arguments)[:200]))
sys.addaudithook(hook)
class Late(Exception): pass
def late(*_): raise Late
signal.signal(signal.SIGALRM, late)
asked = 0
for name, (response, reference, _) in HOSTILE.items():
    one, two = read(response).tree, read(reference).tree
    if one is None or two is None or len(response) > 400 or "9^" in response or "10^" in response or "!" in response:
        continue
    signal.alarm(2)
    try:
        judge({"a": encode(one), "b": encode(two)})
    except Late:
        pass
    signal.alarm(0)
    asked += 1
print(asked, sorted(events))
"""
    )
    asked, events = found.strip().split(" ", 1)
    assert int(asked) > 10 and events == "[]"


def test_the_same_verdicts_after_fork_and_spawn_and_in_batches() -> None:
    """One list of verdicts: main thread, forked child, spawned child, two worker processes, reversed order."""
    found = script(
        r"""
import json, multiprocessing
from hostile import HOSTILE
from verifiers.maths import MathVerifier
PAIRS = [(a, b) for a, b, _ in HOSTILE.values() if len(a) < 20_000][:70]
def run(verifier):
    return [(v.outcome.value, v.kind) for v in (verifier.verify(*pair) for pair in PAIRS)]
def child(queue, verifier):
    queue.put(run(verifier))
if __name__ == "__main__":
    verifier = MathVerifier()
    wanted = run(verifier)
    same = {}
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=child, args=(queue, verifier))
    process.start(); same["fork"] = queue.get() == wanted; process.join()
    both = MathVerifier(workers=2)
    batch = [(v.outcome.value, v.kind) for v in both.verify_batch([a for a, _ in PAIRS], [b for _, b in PAIRS])]
    same["batch"] = batch == wanted
    same["reversed"] = [(v.outcome.value, v.kind) for v in (verifier.verify(*p) for p in PAIRS[::-1])][::-1] == wanted
    print(json.dumps(same)); both.close()
"""
    )
    assert json.loads(found) == {"fork": True, "batch": True, "reversed": True}


def test_a_spawned_process_judges_too(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        f"""
import multiprocessing, sys
sys.path.insert(0, {str(ROOT)!r})
from verifiers.maths import MathVerifier
def child(queue, verifier):
    queue.put([verifier.verify("so 2", "2").score, verifier.compare(r"\\sum_{{k=1}}^{{n}}k", "n(n+1)/2").score])
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=child, args=(queue, MathVerifier()))
    process.start(); print(queue.get(timeout=120)); process.join()
"""
    )
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=200)
    assert done.stdout.strip() == "[1.0, 1.0]", done.stderr[-2000:]
