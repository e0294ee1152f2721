"""docs/algorithms.md: a row for every preset, its settings as they are, and tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from test_rewardkit_rl_table import changed

from rewardkit.rl.config import RlConfig
from rewardkit.rl.settings.presets import PRESETS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "algorithms.md"


def rows_of(heading: str) -> list[list[str]]:
    """Cells of the table below a heading, without its head."""
    part = PAGE.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def spelt(value: Any) -> str:
    """A setting as --change takes it."""
    return {True: "true", False: "false", None: "null"}[value] if isinstance(value, bool | None) else f"{value}"


def settings_of(name: str) -> str:
    """What a preset changes of the plain table, as --change takes it."""
    found = []
    for key, value in changed(name).items():
        given = value if isinstance(value, dict) else {"": value}
        found += [f"{key}{'.' if own else ''}{own}={spelt(one)}" for own, one in given.items() if one is not None]
    return " ".join(found) or "-"


def functions_in(file: str) -> set[str]:
    """Names of the test functions of a file."""
    tree = ast.parse((ROOT / "tests" / file).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_every_preset_has_a_row_and_no_row_is_of_another() -> None:
    assert [row[0].strip("`") for row in rows_of("Presets")] == list(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_row_says_what_the_preset_is(name: str) -> None:
    (row,) = [row for row in rows_of("Presets") if row[0] == f"`{name}`"]
    _, formula, source, settings, _, effect = row
    assert settings == f"`{settings_of(name)}`"
    assert len(formula) > 10 and effect
    # The source is the one that the preset names.
    for number in re.findall(r"\d{4}\.\d{5}", source):
        assert number in PRESETS[name].about
    assert re.search(r"\d{4}", source)


@pytest.mark.parametrize("heading", ["Presets", "Settings"])
def test_the_oracle_tests_exist(heading: str) -> None:
    rows = rows_of(heading)
    assert len(rows) > 8
    for row in rows:
        oracle = row[4 if heading == "Presets" else 2]
        named = re.findall(r"`(\w+)::(test_\w+)`", oracle)
        assert named, row[0]
        for file, test in named:
            assert test in functions_in(f"test_rewardkit_rl_{file}.py"), (row[0], file, test)


def test_the_command_line_names_every_preset() -> None:
    text = (ROOT / "rewardkit" / "rl" / "config.py").read_text()
    said = re.split(r"\W+", text.split('preset: str = "grpo"')[1].split('"""')[1])
    assert [word for word in said if word in PRESETS] == list(PRESETS)
    assert RlConfig(init="x").table == PRESETS["grpo"].table
