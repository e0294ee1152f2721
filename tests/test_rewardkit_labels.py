"""The labelling job: killed at any moment and started again, its file is the one an undisturbed run writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from prm.formats import StepRow, read_stepwise
from prm.labelling import LabelConfig
from rewardkit.labels import make_labels, summary
from search.engines.scripted_engine import ScriptedEngine
from verifiers.core import Problem, Response, Verdict

ROOT = Path(__file__).parents[1]
TEXTS = (
    "One.\n\nTwo.\n\nThree.\n\n\\boxed{1}",
    "One.\n\nTwo.\n\nThree.\n\n\\boxed{2}",
    "One.\n\nOther.\n\n\\boxed{1}",
    "One.\n\nOther.\n\n\\boxed{2}",
    "\\boxed{2}",
)
PROBLEMS = [Problem(id=f"p{n}", prompt=f"Question {n}\n", answer="1") for n in range(12)]
CONFIG = LabelConfig(trials=3, keep_rollouts=True, seed=5)


class Judge:
    """Right is what boxes 1; `pause` makes a run slow enough to be killed in the middle."""

    def __init__(self, pause: float = 0.0) -> None:
        self.pause = pause

    def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
        time.sleep(self.pause)
        return [Verdict.correct("") if "{1}" in r.text else Verdict.incorrect("") for r in responses]


def scripted(
    path: Path, *, problems: Sequence[Problem] = tuple(PROBLEMS), samples: int = 4, pause: float = 0.0, **more: Any
) -> int:
    engine = ScriptedEngine({str(p.prompt): TEXTS for p in PROBLEMS})
    return make_labels(
        problems, engine=engine, verifier=Judge(pause), config=CONFIG, samples=samples, path=path, policy="script",
        chunk=2, abreast=4, **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "labels.jsonl"
    assert scripted(path) == 48
    return path.read_bytes()


def test_the_file_holds_every_response_last_in_its_block(whole: bytes) -> None:
    rows = [json.loads(line) for line in whole.splitlines()]
    own = [(row["problem_id"], row["sample"]) for row in rows if row["source"] == "response"]
    assert own == [(f"p{n}", sample) for n in range(12) for sample in range(4)]
    assert rows[-1]["source"] == "response"
    block: list[tuple[str, int]] = []
    for row in rows:
        block.append((row["problem_id"], row["sample"]))
        if row["source"] == "response":
            assert len(set(block)) == 1
            steps = len(row["completions"])
            assert len(block) <= 1 + CONFIG.trials * (steps - 1)
            block = []
    assert any(row["source"] == "rollout" for row in rows)


def test_nothing_is_left_to_do_for_a_finished_file(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_bytes(whole)
    seen: list[int] = []
    assert scripted(path, on_progress=seen.append) == 0
    assert path.read_bytes() == whole
    assert seen == [12]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.13, 0.41, 0.77, 0.999])
def test_a_file_cut_anywhere_is_completed_to_the_same_bytes(whole: bytes, tmp_path: Path, share: float) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_bytes(whole[: int(len(whole) * share)])
    seen: list[int] = []
    new = scripted(path, on_progress=seen.append)
    assert path.read_bytes() == whole
    assert sum(seen) == 12
    assert 0 < new <= 48


def test_roll_outs_without_their_response_are_drawn_again(whole: bytes, tmp_path: Path) -> None:
    lines = whole.splitlines(keepends=True)
    sources = [json.loads(line)["source"] for line in lines]
    for last in [n for n in range(1, len(lines)) if sources[n - 1] == "rollout"][:6:2]:
        path = tmp_path / f"{last}.jsonl"
        path.write_bytes(b"".join(lines[:last]))
        done = sources[:last].count("response")
        assert scripted(path) == 48 - done
        assert path.read_bytes() == whole


def test_more_problems_and_samples_go_on_from_fewer(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    assert scripted(path, problems=PROBLEMS[:5], samples=2) == 10
    assert scripted(path) == 38
    assert sorted(path.read_bytes().splitlines()) == sorted(whole.splitlines())


def test_killed_in_the_middle_and_resumed(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    code = (
        "import importlib.util, pathlib, sys\n"
        f"spec = importlib.util.spec_from_file_location('job', {str(Path(__file__))!r})\n"
        "job = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(job)\n"
        "job.scripted(pathlib.Path(sys.argv[1]), pause=0.5)\n"
    )
    kill_once(code, path, rows=30)
    left = path.read_bytes()
    assert 0 < len(left) < len(whole)
    assert whole.startswith(left[: left.rfind(b"\n") + 1])
    assert 0 < scripted(path) < 48
    assert path.read_bytes() == whole


def kill_once(code: str, path: Path, *, rows: int) -> None:
    """Start a job, wait until its file has some rows, and kill it with SIGKILL."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    job = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT, env=environment)
    try:
        until = time.monotonic() + 120
        while not path.exists() or path.read_bytes().count(b"\n") < rows:
            assert job.poll() is None, "the job ended before it could be killed"
            assert time.monotonic() < until, "the job wrote too little"
            time.sleep(0.01)
    finally:
        job.send_signal(signal.SIGKILL)
        assert job.wait(timeout=30) == -signal.SIGKILL


def shipped(path: Path, policy: Path) -> int:
    """A small job on a language model."""
    from rewardkit import playground
    from search.engines.transformers_engine import TransformersEngine
    from verifiers.maths import MathVerifier

    config = LabelConfig(trials=2, max_new_tokens=playground.MAX_NEW_TOKENS, keep_rollouts=True)
    return make_labels(
        playground.problems(6, split="train", seed=77), engine=TransformersEngine.load(policy, device="cpu"),
        verifier=MathVerifier(), config=config, samples=2, path=path, policy="policy", chunk=1, abreast=2,
    )  # fmt: skip


@pytest.mark.slow
def test_a_language_models_job_is_killed_and_resumed(playground_policy: Path, tmp_path: Path) -> None:
    undisturbed = tmp_path / "whole.jsonl"
    assert shipped(undisturbed, playground_policy) == 12
    path = tmp_path / "labels.jsonl"
    code = (
        "import importlib.util, pathlib, sys\n"
        f"spec = importlib.util.spec_from_file_location('job', {str(Path(__file__))!r})\n"
        "job = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(job)\n"
        f"job.shipped(pathlib.Path(sys.argv[1]), pathlib.Path({str(playground_policy)!r}))\n"
    )
    kill_once(code, path, rows=12)
    assert 0 < shipped(path, playground_policy) < 12
    assert path.read_bytes() == undisturbed.read_bytes()
    assert read_stepwise(path)


def test_summary_counts_responses_and_roll_outs_apart() -> None:
    rows = [
        StepRow(
            prompt="", completions=("a", "b"), successes=(1, 0), trials=(4, 3), undecided=(0, 1), source="response"
        ),
        StepRow(prompt="", completions=("a", "b"), successes=(0, 1), trials=(0, 1), source="rollout"),
        StepRow(prompt="", completions=("a",), successes=(1,), trials=(1,)),
    ]
    assert summary(rows) == {
        "responses": 2, "roll-out rows": 1, "labelled steps": 4, "trials": 8, "success rate": 0.25,
        "good steps": 2 / 3, "undecided trials": 1,
    }  # fmt: skip
    assert summary([])["success rate"] == 0.0
