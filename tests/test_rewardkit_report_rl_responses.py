"""Responses on the report of a reinforcement-learning run: which steps are shown, what is cut, what a bad row says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_rewardkit_report import folder, page
from test_rewardkit_report_rl import group, rows

from rewardkit.report import rl_samples
from rewardkit.report.contents import RolloutResponse, RolloutStep
from verifiers.errors import DataError


def test_responses_of_first_middle_and_last_step(tmp_path: Path) -> None:
    run = page(folder(tmp_path / "run", metrics=rows(), rollouts=[group(step) for step in range(1, 6)]))
    text = re.sub(r"\s+", " ", run.text)
    for step in (1, 3, 5):
        assert f"said at {step}" in text
    assert "said at 2" not in text and "said at 4" not in text
    assert (
        "step 1 first step p-1" in text
        and "step 3 in the middle p-3" in text
        and "step 5 last step p-5 · mean reward 1.5" in text
    )
    assert "response 1 · reward 1.5" in text and "math 1 · box – · finished" in text
    opened = [attrs for _, attrs in run.tags if attrs.get("class") == "problem"]
    assert ["open" in attrs for attrs in opened] == [False, False, True]


def test_unscored_and_cut_responses_say_why(tmp_path: Path) -> None:
    bad = group(1, reward=None, unscored="reward math took over 2 s", stop_reason="length", text="")
    read = page(folder(tmp_path / "run", metrics=rows(), rollouts=[bad]))
    text = re.sub(r"\s+", " ", read.text)
    assert "response 1 · unscored" in text and "cut at the longest length" in text
    assert "Unscored: reward math took over 2 s" in text and "nothing" in text
    assert "The run goes on, or was stopped." in text, "there is no results.json"


@given(st.lists(st.text(alphabet='<>&"é x', max_size=30_000), min_size=1, max_size=12), st.integers(0, 60_000))
def test_a_step_takes_at_most_thirty_kilobytes(texts: list[str], prompt: int) -> None:
    responses = tuple(
        RolloutResponse(text=text * 4, reward=0.5, parts=(("math", 1.0),), unscored=None, stop_reason="stop")
        for text in texts
    )
    one = RolloutStep(
        step=1, why="first step", problem_id="p" * 500, prompt="<" * prompt, answer="4", responses=responses
    )
    assert len(str(rl_samples.rollouts([one])).encode()) <= 30_000


def test_what_is_cut_is_said() -> None:
    long = RolloutResponse(text="x" * 100_000, reward=0.5, parts=(), unscored=None, stop_reason="stop")
    one = RolloutStep(step=1, why="", problem_id="p", prompt="q", answer="4", responses=(long,) * 11)
    shown = str(rl_samples.rollouts([one]))
    assert "3 more responses are in rollouts.jsonl." in shown  # 11 - 8
    cut = [int(n.replace(",", "")) for n in re.findall(r"([\d,]+) further characters are in rollouts.jsonl", shown)]
    assert len(cut) == 8
    kept = [len(re.findall("x", card)) for card in shown.split("<article")[1:]]
    assert [a + b for a, b in zip(cut, kept, strict=True)] == [100_000] * 8


def test_a_step_written_twice_counts_as_last_written(tmp_path: Path) -> None:
    read = page(folder(tmp_path / "run", metrics=rows(), rollouts=[group(1, text="stale"), group(1, text="fresh")]))
    assert "fresh" in read.text and "stale" not in read.text


def test_broken_rollouts_name_the_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rollouts\.jsonl:1.*'reward' must be a number or null"):
        page(folder(tmp_path / "run", metrics=rows(), rollouts=[group(1, reward="high")]))
