"""The math verifier from end to end: verdicts and their kinds, sympy in its worker, real data."""

from __future__ import annotations

import asyncio
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from verifiers.core import Outcome, Problem, Response, Scorer
from verifiers.equality import EqualityPolicy, math_equal
from verifiers.errors import ConfigError
from verifiers.maths import MathVerifier, reference_text

DATA = Path(__file__).parents[1].parent / "shared" / "data"


def rows(name: str) -> list[dict[str, Any]]:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{name} is not at {path}; the data is not part of the repository")
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    verifier = MathVerifier(timeout_s=10.0)
    yield verifier
    verifier.close()


@pytest.mark.parametrize(
    ("response", "answer", "outcome", "kind"),
    [
        (r"so \boxed{0.5}", r"\frac{1}{2}", Outcome.CORRECT, "exact"),
        (r"so \boxed{0.6}", r"\frac{1}{2}", Outcome.INCORRECT, "exact"),
        ("2+2\nA: 1,234", "work\n#### 1234", Outcome.CORRECT, "structure"),
        (r"\boxed{5}\text{ or }\boxed{7}", "5", Outcome.INCORRECT, "shape"),
        ("I do not know, sorry about that", "5", Outcome.INCORRECT, "no_answer_in_response"),
        ("<think>it is 5", "5", Outcome.INCORRECT, "no_answer_in_response"),
        (r"\boxed{5}", "", Outcome.UNDECIDED, "no_answer"),
        (r"\boxed{5}", "what & where", Outcome.UNDECIDED, "reference_unparsable"),
        (r"\boxed{B}", "(B)", Outcome.CORRECT, "choice"),
        (r"\boxed{__import__('os').getcwd()}", "1", Outcome.INCORRECT, "answer_unparsable"),
    ],
)
def test_verdicts(verifier: MathVerifier, response: str, answer: str, outcome: Outcome, kind: str) -> None:
    verdict = verifier.verify(response, answer)
    assert (verdict.outcome, verdict.kind) == (outcome, kind), verdict


@pytest.mark.parametrize(
    ("response", "answer", "outcome"),
    [
        (r"\boxed{1}", r"\sum_{k=1}^{\infty}\frac{1}{2^k}", Outcome.CORRECT),
        (r"\boxed{\frac{n(n+1)}{2}}", r"\sum_{k=1}^{n} k", Outcome.CORRECT),
        (r"\boxed{1}", r"\lim_{x \to 0}\frac{\sin x}{x}", Outcome.CORRECT),
        (r"\boxed{1/3}", r"\int_0^1 x^2 dx", Outcome.CORRECT),
        (r"\boxed{121}", r"\prod_{k=1}^{5} k", Outcome.INCORRECT),
    ],
)
def test_the_last_stage(verifier: MathVerifier, response: str, answer: str, outcome: Outcome) -> None:
    verdict = verifier.verify(response, answer)
    assert (verdict.outcome, verdict.kind) == (outcome, "symbolic"), verdict


def test_a_defect_is_undecided_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise IndexError("list index out of range")

    monkeypatch.setattr("verifiers.maths.judge_equal", broken)
    for verdict in (MathVerifier().verify("A: 2", "2"), MathVerifier().compare("2", "3")):
        assert (verdict.outcome, verdict.score, verdict.kind) == (Outcome.UNDECIDED, None, "defect")
        assert "IndexError: list index out of range" in verdict.reason and "test_verifiers_maths.py" in verdict.reason


def test_a_hanging_last_stage_is_undecided_and_survived() -> None:
    verifier = MathVerifier(timeout_s=0.3)
    verdict = verifier.verify(r"\boxed{1}", r"\sum_{k=1}^{10^9}\frac{1}{k^2}")
    assert (verdict.outcome, verdict.score, verdict.kind) == (Outcome.UNDECIDED, None, "timeout")
    assert verifier.verify(r"\boxed{2}", "2").score == 1.0
    verifier.close()


def test_without_the_last_stage() -> None:
    verifier = MathVerifier(equality_policy=EqualityPolicy(symbolic=False))
    verdict = verifier.verify(r"\boxed{1}", r"\sum_{k=1}^{\infty}\frac{1}{2^k}")
    assert (verdict.outcome, verdict.kind) == (Outcome.UNDECIDED, "unproved")


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("18", "18"),
        (r"\frac{1}{2}", r"\frac{1}{2}"),
        ("Natalia sold 48/2 = 24.\n#### 72", "72"),
        (r"Then $x = \boxed{5}$, as 3 < 7.", "5"),
        ("3 + 4 = 7\nA: 7", "7"),
    ],
)
def test_references(reference: str, text: str) -> None:
    assert reference_text(reference) == text


def test_batch_and_scorer(verifier: MathVerifier) -> None:
    assert isinstance(verifier, Scorer)
    texts = [r"\boxed{1}", r"\boxed{2}", "none of it, really"]
    assert [v.score for v in verifier.verify_batch(texts, ["1", "3", "4"])] == [1.0, 0.0, 0.0]
    two = MathVerifier(workers=2)
    assert [v.score for v in two.verify_batch(texts * 20, ["1", "3", "4"] * 20)] == [1.0, 0.0, 0.0] * 20
    problems = [Problem(id="p1", prompt="1+1?", answer="2")]
    responses = [Response(problem_id="p1", text=r"\boxed{2}")]
    assert verifier.judge(problems, responses)[0].score == 1.0
    with pytest.raises(ConfigError, match="'p2' has no reference"):
        verifier.judge([Problem(id="p2", prompt="?")], responses)
    with pytest.raises(ConfigError, match="1 responses and 2"):
        verifier.verify_batch(["1"], ["1", "2"])
    with pytest.raises(ConfigError, match="1 problems and 2"):
        verifier.judge(problems, responses * 2)


def test_threads_and_asyncio_agree(verifier: MathVerifier) -> None:
    found: list[float | None] = []
    thread = Thread(target=lambda: found.append(verifier.verify(r"\boxed{120}", r"\prod_{k=1}^{5}k").score))
    thread.start()
    thread.join()

    async def ask() -> float | None:
        return (await asyncio.to_thread(verifier.verify, r"\boxed{120}", r"\prod_{k=1}^{5}k")).score

    assert [*found, asyncio.run(ask())] == [1.0, 1.0]


def test_pickled(verifier: MathVerifier) -> None:
    again = pickle.loads(pickle.dumps(verifier))
    assert again.verify(r"\boxed{2}", "2").score == 1.0
    again.close()


def test_math_equal() -> None:
    assert math_equal("0.5", r"\frac12").score == 1.0
    assert math_equal("120", r"\prod_{k=1}^{5}k").kind == "symbolic"
    assert math_equal("50", r"50\%", policy=EqualityPolicy(percent="strict")).score == 0.0


def test_imports_nothing_heavy() -> None:
    code = (
        "import sys, verifiers.maths; verifiers.maths.MathVerifier().verify('A: 2', '2'); "
        "print([m for m in ('torch', 'numpy', 'sympy', 'mpmath') if m in sys.modules])"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_gsm8k_recorded_correctness(verifier: MathVerifier) -> None:
    data = rows("gsm8k_model_solutions.jsonl")
    verdicts = verifier.verify_batch([row["response"] for row in data], [row["answer"] for row in data])
    agree = sum((v.score == 1.0) == row["correct"] for v, row in zip(verdicts, data, strict=True))
    assert len(data) == 3_260
    assert agree == len(data)


def test_every_math_answer_equals_itself(verifier: MathVerifier) -> None:
    answers = [row["answer"] for row in rows("math_answers.jsonl")]
    verdicts = [verifier.verify(rf"So it is \boxed{{{answer}}}.", answer) for answer in answers]
    missed = [a for a, v in zip(answers, verdicts, strict=True) if v.score != 1.0]
    assert missed == [""]  # one reference is empty: undecided
    wrapped = [a for a in answers if math_equal(f"{{{a}}}", a).score != 1.0]  # past the text stage
    assert wrapped == [""]


def test_labelled_pairs(verifier: MathVerifier) -> None:
    data = [row for row in rows("verifier_equivalence_dev.jsonl") if not row.get("contested")]
    right = false_positives = 0
    for row in data:
        if row["kind"] == "completion" or "boxed" in row["pred"]:
            verdict = verifier.verify(row["pred"], row["gold"])
        else:
            verdict = math_equal(row["pred"], row["gold"])
        right += (verdict.score == 1.0) == row["equal"]
        false_positives += verdict.score == 1.0 and not row["equal"]
    assert right / len(data) >= 0.94
    assert false_positives <= 1
