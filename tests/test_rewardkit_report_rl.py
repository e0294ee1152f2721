"""The report of a reinforcement-learning run: its numbers are the log's, alarms stand first, nothing becomes markup."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_rewardkit_report import EVIL, Page, folder, page

from rewardkit.report import figures, rl_charts, rl_panels, rl_reading, rl_section
from rewardkit.report import page as page_module
from rewardkit.report.words import wilson
from rewardkit.rl import RlConfig, train
from rewardkit.rl.credit.guards import Alarm, GuardReport, Guards
from verifiers.core import Problem, Response, Verdict

COLLAPSE = {"name": "reward_collapse", "message": "the mean reward of the last 3 steps is 0.000"}
LONG = {"name": "length_drift", "message": "the mean length is 1.80 times that of the first 20 steps"}
RIGHT = {0: [0, 1, 2, 4], 4: [1, 3, 2, 4]}
"""Right responses of four held-out problems, of four each: pass@1 7/16 and 10/16, pass@4 3/4 and 1."""


def rows(count: int = 4, **changes: Any) -> list[dict[str, Any]]:
    """A log of `count` steps, measured on held-out problems before the first and after the fourth."""
    held = {
        step: {
            "heldout/pass@1": sum(right) / 16,
            "heldout/pass@4": sum(n > 0 for n in right) / 4,
            "heldout/problems": 4.0,
            "heldout/samples": 4.0,
            "heldout/right": right,
            "heldout/length": 60.0 + step,
            "seconds/heldout": 1.25,
        }
        for step, right in RIGHT.items()
    }
    found: list[dict[str, Any]] = [{"step": 0, **held[0]}]
    for step in range(1, count + 1):
        row = {
            "step": step,
            "outcome/mean": step / 8,
            "reward/mean": step / 8 + 0.5,
            "reward/math/mean": step / 8,
            "reward/box/mean": 0.5,
            "reward/unscored": 0.0,
            "length/mean": 50.0 - step,
            "guard/step_count": 3.5,
            "guard/alarms": 0.0,
            "advantage/responses": 16.0,
            "advantage/constant": 4.0 * (step % 2),
            "update/clipped_high": 0.01 * step,
            "update/ratio": 1.0,
            "update/old_kl": 2e-13,
            "sampler/gap": 1e-6 * step,
            "update/gradient_greatest": 0.25 * step,
            "kl/coefficient": 0.0,
            "draw/groups": 4.0,
            "draw/kept": 4.0,
            "tokens": 300.0,
            "draw/truncated": 0.0,
            "seconds/draw": 2.0,
            "seconds/reward_work": 9.0,
            "seconds/update": 1.0,
            "my/own": 10.0 + step,
            **held.get(step, {}),
        }
        found.append(row)
    return [{**row, **changes} for row in found]


def group(step: int, **changes: Any) -> dict[str, Any]:
    response = {"text": f"said at {step}", "reward": 1.5, "parts": {"math": 1.0, "box": None}, "unscored": None,
                "stop_reason": "stop", **changes}  # fmt: skip
    return {"step": step, "problem_id": f"p-{step}", "prompt": "2 + 2?", "answer": "4", "responses": [response]}


RESULTS = {
    "title": "Reinforcement learning",
    "facts": {"regime": "grpo: 2 x 8 responses a step", "rewards": "1 x math", "steps": 4, "updates": 4, "alarms": []},
}
CONFIG = "preset: grpo\nrewards:\n- math\nsteps: 4\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Page:
    where = tmp_path_factory.mktemp("rl") / "run"
    steps = [group(step) for step in range(1, 6)]
    return page(folder(where, config=CONFIG, results=RESULTS, metrics=rows(), rollouts=steps))


def chart(read: Page, name: str) -> dict[str, Any]:
    """The traces of a panel by name."""
    at = next(i for i, (_, attrs) in enumerate(read.tags) if attrs.get("id") == f"data-rl-{name}")
    figure = json.loads(read.scripts[sum(tag == "script" for tag, _ in read.tags[:at])])
    return {"layout": figure["layout"], **{trace["name"]: trace for trace in figure["data"] if trace.get("name")}}


def ids(read: Page) -> list[str]:
    return [str(attrs["id"]) for _, attrs in read.tags if attrs.get("class") == "chart"]


def test_the_line_tells_where_it_began_and_ended(run: Page) -> None:
    text = re.sub(r"\s+", " ", run.text)
    assert "grpo for 1 x math: 4 steps." in text
    before = re.search(r"Held-out pass@1: 43\.8 % \[([\d.]+) – ([\d.]+) %\] before the first step", text)
    assert before is not None and float(before[1]) < 43.75 < float(before[2])
    # gains of the problems: 1/4, 2/4, 0, 0; a bootstrap of four values cannot leave their range
    after = re.search(r"→ 62\.5 % \[.*?\] after step 4: \+18\.8 points \[\+([\d.]+) to \+([\d.]+)\], (.*?)\.", text)
    assert after is not None and 0 <= float(after[1]) < 18.75 < float(after[2]) <= 50
    assert after[3] == ("better" if float(after[1]) > 0 else "no difference shown")
    assert "Held-out pass@4: 75.0 %" in text and "→ 100.0 %" in text
    assert "Measured on 4 problems, 4 responses each." in text
    assert "Mean outcome of drawn responses: 12.5 % in the first step, 50.0 % in the last." in text
    assert "The steps took 12.0 s (draw 67 %, update 33 %) for 1,200 tokens of responses, 100 a second" in text
    assert "held-out measurements took 2.5 s more." in text
    assert "No alarm rang." in text


def test_empty_sections_are_gone(run: Page) -> None:
    sections = [attrs.get("id") for tag, attrs in run.tags if tag == "section"]
    assert sections == ["learning", "responses", "again"]
    links = [attrs.get("href") for tag, attrs in run.tags if tag == "a"]
    assert links == ["#learning", "#responses", "#again"]
    assert "So there is no" not in run.text


def test_panels_hold_the_logged_numbers(run: Page) -> None:
    outcome = chart(run, "outcome")["mean outcome"]
    assert (outcome["x"], outcome["y"]) == ([1, 2, 3, 4], [0.125, 0.25, 0.375, 0.5])
    reward = chart(run, "reward")
    assert (reward["sum"]["y"], reward["box"]["y"]) == ([0.625, 0.75, 0.875, 1.0], [0.5] * 4)
    held = chart(run, "heldout")
    assert (held["pass@1"]["x"], held["pass@1"]["y"]) == ([0, 4], [0.4375, 0.625])
    assert held["pass@4"]["y"] == [0.75, 1.0]
    length = chart(run, "length")
    assert (length["drawn"]["y"], length["held out"]["y"]) == ([49.0, 48.0, 47.0, 46.0], [60.0, 64.0])
    assert chart(run, "signal")["all of the group alike"]["y"] == [0.25, 0.0, 0.25, 0.0]
    assert "type" not in chart(run, "gap")["layout"]["yaxis"], "1e-6 to 4e-6 is less than a power of ten"
    seconds = chart(run, "seconds")
    assert (seconds["draw"]["y"], seconds["update"]["stackgroup"]) == ([2.0] * 4, "all")
    assert chart(run, "speed")["tokens a second"]["y"] == [100.0] * 4


def test_panels_and_lines_with_nothing_to_say_are_left_out(run: Page) -> None:
    shown = ids(run)
    assert shown[:3] == ["rl-heldout", "rl-outcome", "rl-reward"]
    for name in ("entropy", "ratio", "kl", "beta", "draw", "shares", "auc", "lambda", "loss"):
        assert f"rl-{name}" not in shown
    moved = rows(**{"reward/unscored": 0.25, "draw/kept": 3.0, "update/ratio": 1.5, "update/entropy": 0.75})
    moved[2] |= {"kl/coefficient": 0.5, "sampler/gap": 1e-3}
    groups, _ = rl_charts.groups(rl_reading.rl_rows(moved), (), ())
    charts = {one.id: json.loads(one.json) for own in groups for one in own.charts}
    assert {"rl-shares", "rl-draw", "rl-ratio", "rl-entropy", "rl-beta"} <= set(charts)
    assert charts["rl-gap"]["layout"]["yaxis"]["type"] == "log"


def test_what_no_panel_draws_is_in_the_table(run: Page) -> None:
    at = run.text.index("Other figures")
    lines = [line for line in run.text[at:].split("\n") if line]
    assert lines[lines.index("my/own") :][:6] == ["my/own", "4", "11", "14", "11", "14"]
    assert "update/ratio" in lines and "outcome/mean" not in lines


def test_every_logged_number_is_in_a_panel_or_in_the_table() -> None:
    steps = rl_reading.rl_rows(rows())
    _, drawn = rl_charts.groups(steps, rl_reading.held_out(steps), ())
    numbers = {name for row in steps for name, value in row.items() if isinstance(value, float)}
    table = set(figures.metric_series(steps)) - drawn
    assert numbers <= drawn | table
    assert {"my/own", "update/ratio", "draw/kept"} <= table


def test_curves_that_lie_on_each_other_are_one(tmp_path: Path) -> None:
    read = page(folder(tmp_path / "run", metrics=rows(**{"reward/math/mean": 0.5, "reward/box/mean": 0.5})))
    assert set(chart(read, "reward")) == {"layout", "sum", "math, box"}


def test_a_collapse_is_the_first_thing_one_reads(tmp_path: Path) -> None:
    log = rows(12)
    for step in (3, 4, 5):
        log[step]["alarms"] = [LONG]
    for step in range(6, 13):
        log[step]["alarms"] = [COLLAPSE]
    log[12]["alarms"] = [COLLAPSE, {"name": "of_my_own", "message": ""}]
    rolled = [group(step) for step in range(1, 13)]
    read = page(folder(tmp_path / "run", results=RESULTS, metrics=log, rollouts=rolled))
    lines = [line.strip() for line in read.text.split("\n") if line.strip()]
    at = next(i for i, line in enumerate(lines) if "The reward has collapsed" in line)
    assert lines[at] == "⚠ The reward has collapsed from step 6, to the end (7 steps)The mean reward of the last 3 " \
        "steps is 0.000."  # fmt: skip
    assert lines[at + 1].startswith("⚠ The length of responses has drifted from step 3, last at step 5 (3 steps)")
    assert lines[at + 2] == "⚠ of my own at step 12"
    assert lines[at + 3] == "grpo for 1 x math: 12 steps." and "No alarm rang." not in read.text
    marks = [(shape["x0"], shape["yref"]) for shape in chart(read, "outcome")["layout"]["shapes"]]
    assert marks == [(6, "paper")]
    assert "step 3 an alarm began p-3" in re.sub(r"\s+", " ", read.text)


def test_alarms_of_a_log_that_does_not_name_them() -> None:
    log = rows()
    log[2]["guard/alarms"] = log[3]["guard/alarms"] = 1.0
    (known,) = rl_reading.alarms(rl_reading.rl_rows(log), ["step_scorer"])
    assert (known.name, known.first, known.last, known.steps, known.end) == ("step_scorer", 2, 3, 2, 4)
    (unknown,) = rl_reading.alarms(rl_reading.rl_rows(log))
    assert (unknown.name, unknown.first) == ("", 2)
    (undated,) = rl_reading.alarms(rl_reading.rl_rows(rows()), ["length_drift"])
    assert (undated.first, undated.steps) == (None, 0)
    assert rl_section._alarm_line(undated).when == "the log does not say at which step"
    assert rl_reading.alarms(rl_reading.rl_rows(rows())) == ()


def test_every_alarm_of_the_guards_has_words() -> None:
    source = Path("rewardkit/rl/credit/guards.py").read_text()
    documented = re.search(r'name: str\n    """(.*?)"""', source, re.S)
    assert documented is not None
    names = set(re.findall(r"[a-z]+_[a-z_]+", documented[1]))
    assert len(names) >= 6 and names <= set(rl_section.ALARMS)
    told = {name for own in rl_panels.PANELS.values() for panel in own for name in panel.alarms}
    assert told <= names


def test_intervals_of_measurements() -> None:
    first, last = rl_reading.held_out(rl_reading.rl_rows(rows()))
    assert (first.step, last.step, first.passed[1].mean, last.passed[4].mean) == (0, 4, 0.4375, 1.0)
    gain = rl_reading.gained(first, last, 1)
    assert gain is not None and (gain.mean, gain.problems) == (0.1875, 4)
    # all four problems alike: a bootstrap would say that the rate is exactly 1
    assert (last.passed[4].low, last.passed[4].high) == wilson(1.0, 4)
    without = [{k: v for k, v in row.items() if k != "heldout/right"} for row in rows()]
    plain = rl_reading.held_out(rl_reading.rl_rows(without))
    assert plain[0].passed[1].mean == 0.4375 and plain[0].passed[1].low is None
    assert rl_reading.gained(plain[0], plain[1], 1) is None
    undecided = rl_reading.held_out(rl_reading.rl_rows(rows(**{"heldout/right": [4, None, 0, 9]})))
    assert undecided[0].right == (), "9 of 4 is no count"
    some = [rl_reading.Measured(step=0, passed={}, samples=2, right=right) for right in ((0, None, 2), (1, 2, 2))]
    found = rl_reading.gained(some[0], some[1], 1)
    assert found is not None and (found.mean, found.problems) == (0.25, 2), "(1/2 + 0) / 2"


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(4, 50))
def test_thinning_keeps_ends_lows_and_highs(values: list[float], most: int) -> None:
    kept = figures.kept_points(values, most)
    assert kept == sorted(set(kept)) and len(kept) <= most
    assert (kept[0], kept[-1]) == (0, len(values) - 1)
    chosen = [values[i] for i in kept]
    assert (min(chosen), max(chosen)) == (min(values), max(values))


def test_nothing_that_a_model_writes_becomes_markup(tmp_path: Path) -> None:
    row = group(1, text=EVIL, unscored=EVIL, reward=None, stop_reason=EVIL, parts={EVIL: 1.0})
    row |= {"prompt": EVIL, "answer": EVIL, "problem_id": EVIL}
    log = rows(**{f"reward/{EVIL}/mean": 0.5, EVIL: 1.0, f"seconds/{EVIL}": 1.0})
    log[4]["alarms"] = [{"name": EVIL, "message": EVIL}]
    data = {"title": "x", "facts": {"regime": EVIL, "rewards": EVIL, "updates": EVIL}}
    read = page(folder(tmp_path / "run", config=f"preset: '{EVIL}'\n", results=data, metrics=log, rollouts=[row]))
    assert not [tag for tag, attrs in read.tags if tag == "img" or "onerror" in attrs]
    assert read.text.count('<script>alert("x")</script>') >= 12, "shown as text"
    assert len(read.scripts) == len(ids(read)) + 2, "plotly, the figures, their script"
    for trace in (trace for name in ("reward", "seconds") for trace in chart(read, name)):
        assert "<script" not in trace


def test_five_thousand_steps_are_a_small_page(tmp_path: Path) -> None:
    log = []
    for step, row in enumerate([rows()[1]] * 5000, start=1):
        wave = {name: value + (step * 7919 % 1009) / 1009 for name, value in row.items() if name != "step"}
        more = {f"reward/part{n}/mean": (step * (n + 3) % 997) / 997 for n in range(6)}
        log.append({"step": step, **wave, **more, "update/entropy": step % 13 / 7, "update/ref_kl": step % 17 / 3})
    run = folder(
        tmp_path / "run", config=CONFIG, metrics=log, rollouts=[group(n, text="<" * 9000) for n in (1, 9, 5000)]
    )
    text = page_module.write_report(run).read_text()
    assert len(text.encode()) < 3_000_000
    drawn = [len(trace["x"]) for json_text in re.findall(r'id="data-rl-[^>]*>(.*?)</script>', text)
             for trace in json.loads(json_text)["data"]]  # fmt: skip
    assert len(drawn) > 20 and max(drawn) <= rl_charts.MOST


def test_other_runs_have_no_such_section(tmp_path: Path) -> None:
    read = page(folder(tmp_path / "run", metrics=[{"step": 1, "loss": 1.0}], rollouts="not json"))
    sections = [attrs.get("id") for tag, attrs in read.tags if tag == "section"]
    assert sections == ["quality", "steps", "training", "solutions", "again"]


class Ringing(Guards):
    """Guards that ring at every step."""

    def observe(self, **seen: Any) -> GuardReport:
        return replace(super().observe(**seen), alarms=(Alarm(name="length_drift", message="too long", new=True),))


class Judge:
    """Finds everything right, but cannot tell for one problem."""

    def judge(self, problems: Sequence[Problem], responses: Sequence[Response]) -> list[Verdict]:
        return [Verdict.undecided("as told") if one.id == "b" else Verdict.correct("as told") for one in problems]


def test_a_run_logs_what_the_report_needs(tiny_policy: Path, tmp_path: Path) -> None:
    config = RlConfig(init=str(tiny_policy), preset="rloo", steps=1, prompts=1, group=2, max_new_tokens=4, eval_every=1,
                      eval_samples=2)  # fmt: skip
    learned, unclear, held = (Problem(id=name, prompt=f"{name}: ", answer="1") for name in "abc")
    log: list[dict[str, Any]] = []

    train(
        config,
        [learned],
        {"own": Judge()},
        out=tmp_path / "model",
        work=tmp_path / "work",
        outcome="own",
        held_out=[unclear, held],
        verifier=Judge(),
        guards=Ringing(),
        on_log=log.append,
    )
    assert [row["heldout/right"] for row in log] == [[None, 2], [None, 2]] and log[0]["heldout/samples"] == 2.0
    assert "alarms" not in log[0] and log[1]["alarms"] == [{"name": "length_drift", "message": "too long"}]
    assert log[0]["seconds/heldout"] > 0 and "guard/lambda" not in log[1]
    (first, last), (alarm,) = rl_reading.held_out(log), rl_reading.alarms(log)
    assert (first.passed[2].mean, last.passed[1].problems, alarm.first) == (1.0, 1, 1)
