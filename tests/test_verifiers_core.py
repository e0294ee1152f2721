"""The values at the seams: invariants, spelling, seeds that are the same everywhere."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers.core import Outcome, Problem, Response, Sampling, StopReason, Verdict, derive_seed
from verifiers.errors import ConfigError

PARTS = st.lists(st.text(max_size=5) | st.integers() | st.booleans() | st.none(), max_size=4)


def test_seeds_are_blake2b_of_the_parts_spelt_out() -> None:
    digest = hashlib.blake2b(b"7\x1f'gsm8k/3'\x1f0", digest_size=8).digest()
    assert derive_seed(7, "gsm8k/3", 0) == int.from_bytes(digest, "big") >> 1 == 2393395830710699788


def test_seeds_are_equal_in_another_process() -> None:
    code = "from verifiers.core import derive_seed; print(derive_seed(0, 'p', None, 1.5, True))"
    root = Path(__file__).parents[1]
    for hash_seed in ("1", "2"):
        found = subprocess.run(
            [sys.executable, "-c", code],
            cwd=root,
            env={"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(found.stdout) == derive_seed(0, "p", None, 1.5, True)


@given(PARTS, PARTS)
def test_seeds_tell_parts_apart_and_have_63_bits(a: list[Any], b: list[Any]) -> None:
    assert 0 <= derive_seed(*a) < 2**63
    assert (derive_seed(*a) == derive_seed(*b)) == ([*map(repr, a)] == [*map(repr, b)])


def test_neighbouring_seeds_are_unrelated() -> None:
    bits = np.array([[derive_seed(0, "p", i) >> b & 1 for b in range(63)] for i in range(400)])
    flips = (bits[1:] != bits[:-1]).mean()
    assert flips == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(399 * 63))
    assert abs(bits.mean(0) - 0.5).max() < 5 * 0.5 / np.sqrt(400)
    assert derive_seed("a", "b") != derive_seed("a\x1fb") != derive_seed("ab")


@pytest.mark.parametrize("part", [np.int64(3), np.float64(1.0), Outcome.CORRECT, object(), (1, 2)])
def test_parts_without_one_spelling_are_refused(part: object) -> None:
    with pytest.raises(ConfigError, match="derives from plain strings and numbers"):
        derive_seed(0, part)


def test_a_verdict_has_no_score_exactly_when_undecided() -> None:
    for outcome in Outcome:
        for score in (None, 0.0, 1.0, -2.5):
            fits = (score is None) == (outcome is Outcome.UNDECIDED)
            if fits:
                assert Verdict(outcome=outcome, score=score, reason="r").score == score
            else:
                with pytest.raises(ConfigError, match=f"got outcome '{outcome.value}' with score"):
                    Verdict(outcome=outcome, score=score, reason="r")


def test_verdicts_by_name() -> None:
    right = Verdict.correct("same", extracted="4", kind="exact")
    assert (right.outcome, right.score, right.extracted, right.kind) == (Outcome.CORRECT, 1.0, "4", "exact")
    wrong = Verdict.incorrect("differs", extracted="5")
    assert (wrong.outcome, wrong.score, wrong.extracted) == (Outcome.INCORRECT, 0.0, "5")
    assert (Verdict.undecided("slow").outcome, Verdict.undecided("slow").score) == (Outcome.UNDECIDED, None)
    assert (Verdict.graded(-0.5, "long").outcome, Verdict.graded(-0.5, "long").score) == (Outcome.GRADED, -0.5)


def test_verdicts_speak() -> None:
    spoken = {
        str(Verdict.correct("4 = 4.0", extracted="4.0", kind="exact")): ("correct (1, answer '4.0'): 4 = 4.0 [exact]"),
        str(Verdict.incorrect("no")): "incorrect (0): no",
        str(Verdict.undecided("too slow", kind="timeout")): "undecided (no score): too slow [timeout]",
        str(Verdict.graded(-0.125, "9 tokens over")): "graded (-0.125): 9 tokens over",
    }
    assert list(spoken) == list(spoken.values())


def test_values_are_frozen() -> None:
    for value in (Problem(id="p", prompt="?"), Response(problem_id="p", text=""), Verdict.correct(""), Sampling()):
        name = dataclasses.fields(value)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, "x")


def test_a_response_has_one_log_probability_a_token_or_none() -> None:
    assert Response(problem_id="p", text="", token_ids=(1, 2), logprobs=(-0.5, -1.0)).stop_reason is StopReason.STOP
    assert Response(problem_id="p", text="", token_ids=(1, 2)).logprobs == ()
    for ids in ((), (1,), (1, 2, 3)):
        with pytest.raises(ConfigError, match=rf"got 2 for {len(ids)} tokens \(problem 'p'\); pass both"):
            Response(problem_id="p", text="", token_ids=ids, logprobs=(-0.5, -1.0))


@pytest.mark.parametrize(
    ("setting", "must"),
    [
        ({"temperature": -0.1}, "temperature must be 0 or more; got -0.1"),
        ({"temperature": float("nan")}, "temperature must be 0 or more; got nan"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\]; got 0.0"),
        ({"top_p": 1.01}, r"top_p must be in \(0, 1\]; got 1.01"),
        ({"top_k": -1}, r"top_k must be 0 \(off\) or more; got -1"),
        ({"max_new_tokens": 0}, "max_new_tokens must be 1 or more; got 0"),
        ({"stop_sequences": ((1,), ())}, r"stop_sequences must be non-empty sequences; got \(\(1,\), \(\)\)"),
    ],
)
def test_sampling_refuses_what_cannot_be_drawn(setting: dict[str, Any], must: str) -> None:
    with pytest.raises(ConfigError, match=f"Sampling.{must}"):
        Sampling(**setting)
