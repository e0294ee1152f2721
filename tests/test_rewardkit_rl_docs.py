"""The numbers in docs/rl.md and docs/kl.md are those that the code and the benchmark's results have."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rewardkit.rl.credit.step_config import StepConfig
from rewardkit.rl.credit.step_rewards import lambda_returns, step_rewards

ROOT = Path(__file__).parents[1]
NUMBER = r"-?\d+(?:\.\d+)?"


def test_the_example_of_what_the_anchor_prevents() -> None:
    text = (ROOT / "docs/rl.md").read_text()
    told = re.search(rf"scores ([\d. ]+), a wrong answer: R = ({NUMBER}), Phi_0 = ({NUMBER})", text)
    assert told is not None
    scores, outcome, start = [float(x) for x in told[1].split()], float(told[2]), float(told[3])
    for name, anchor in (("anchored", True), ("unanchored", False)):
        row = re.search(rf"^ +{name} +r = ((?:{NUMBER} )+) *sum ({NUMBER})$", text, re.MULTILINE)
        assert row is not None
        found = step_rewards(StepConfig(anchor=anchor), scores, outcome, start)
        assert found.tolist() == pytest.approx([float(x) for x in row[1].split()], abs=1e-12)
        assert found.sum() == pytest.approx(float(row[2]), abs=1e-12)
    assert "earns 0.35 and" in text and "it pays 0.6 back" in text


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_the_two_forms_of_the_lambda_return_are_equal(lam: float) -> None:
    phi, outcome, start = [0.4, 0.6, 0.95, 0.2], 1.0, 0.5
    last = len(phi)
    values = [start, *phi]
    found = lambda_returns(step_rewards(StepConfig(), phi, outcome, start), lam)
    for t in range(1, last + 1):
        later = (1 - lam) * sum(lam ** (k - t) * values[k] for k in range(t, last))
        assert found[t - 1] == pytest.approx(later + lam ** (last - t) * outcome - values[t - 1], abs=1e-12)


def test_a_mean_that_is_taken_before_summing_is_a_price_on_steps() -> None:
    rewards = step_rewards(StepConfig(), [0.4, 0.6, 0.95], 0.0, 0.5)
    assert np.sum(rewards - 0.1) == pytest.approx(0.0 - 0.5 - 0.1 * 3, abs=1e-12)


def tables() -> list[list[list[str]]]:
    """The Markdown tables of docs/kl.md as rows of cells."""
    blocks = re.findall(r"(?:^\|.*\n)+", (ROOT / "docs/kl.md").read_text(), re.MULTILINE)
    return [
        [[cell.strip() for cell in line.strip("|\n ").split("|")] for line in block.splitlines()] for block in blocks
    ]


def figures() -> dict[str, dict[str, Any]]:
    rows = json.loads((ROOT / "benchmarks/results/rl_kl.json").read_text())["figures"]
    return {row["name"]: row for row in rows}


def close(cell: str, value: float) -> bool:
    """Whether a cell is the value, rounded to two decimals; a bare 0 is for rounding errors alone."""
    return abs(value) < 1e-9 if cell == "0" else abs(float(cell) - value) <= 0.005 + 1e-9 and "." in cell


def test_the_exact_tables_are_those_of_the_results() -> None:
    known, seen = figures(), 0
    keys = {
        "value: bias": "bias",
        "value: noise": "value_noise",
        "gradient: off the sequence KL's": "value",
        "off the state KL's": "state_error",
        "gradient: noise": "gradient_noise",
        "off it at the older policy's states": "sampled_state_error",
    }
    for head, _, *rows in [table for table in tables() if table[0][0] in ("on-policy", "off-policy")]:
        for name, *cells in rows:
            for column, cell in zip(head[1:], cells, strict=True):
                for distance, number in zip(("near", "far"), cell.split(" / "), strict=True):
                    assert close(number, known[f"{head[0]}, {distance}: {name}"][keys[column]]), (name, column, cell)
                    seen += 1
    # Every row of the results is in a table: 15 rows, near and far, with 5 columns and with 6.
    assert seen == 15 * 2 * (5 + 6)
    assert sum(name.startswith(("on-policy", "off-policy")) for name in known) == 15 * 2 * 2


def test_the_playground_table_is_that_of_the_results() -> None:
    known = {name: row for name, row in figures().items() if name.startswith("playground, ")}
    (table,) = [table for table in tables() if table[0][0] == "playground"]
    assert len(table) - 2 == len(known) == 11
    for name, bias, noise in table[2:]:
        row = known["playground, " + name.replace(": ", ": value of ", 1)]
        for cell, keys in ((bias, ("value", "standard_error")), (noise, ("value_noise", "value_noise_error"))):
            assert all(close(part, row[key]) for part, key in zip(cell.split(" ± "), keys, strict=True)), (name, cell)


def test_the_sentences_about_the_tables_hold() -> None:
    known = figures()
    for distance in ("near", "far"):
        # Exact rows, whatever the floats: sequence KL, state KL, state KL at the older policy's states.
        assert known[f"on-policy, {distance}: k1 in reward"]["greatest"] < 1e-10
        assert known[f"on-policy, {distance}: k2_seq in loss"]["greatest"] < 1e-10
        for name in ("k2 in loss", "k3_is in loss", "full in loss", "k1 in advantage"):
            assert known[f"on-policy, {distance}: {name}"]["state_error"] < 1e-10
        for name in ("k3_is in loss", "full in loss"):
            assert known[f"off-policy, {distance}: {name}"]["sampled_state_error"] < 1e-10
        # The ratio's gradient is what the bug loses: off the state KL as far as k3 is, on-policy to rounding.
        bug = known[f"on-policy, {distance}: k3_is, ratio without gradient in loss"]
        k3 = known[f"on-policy, {distance}: k3 in loss"]
        assert bug["state_error"] == pytest.approx(k3["state_error"], abs=1e-12) and bug["state_error"] > 0.1
        # No gradient at all, with the noise of one.
        assert known[f"on-policy, {distance}: k1 in loss"]["value"] == pytest.approx(1.0, abs=1e-12)
        assert known[f"on-policy, {distance}: full in loss"]["gradient_noise"] < 0.5 * min(
            known[f"on-policy, {distance}: {name}"]["gradient_noise"] for name in ("k2 in loss", "k3_is in loss")
        )
