"""Answers as language models write them, against references: 1,800 pairs and responses of a hostile review.

`answer_pairs.jsonl` holds {"answer", "reference", "equal", "response"}: a reviewer wrote the rows and judged them, two
thirds before reading any code, the rest aimed at weak spots found in it. Kept are those that the verifier decides as
the reviewer did, so that none is lost again: this is a regression set and says nothing of accuracy.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from verifiers.equality import math_equal
from verifiers.maths import MathVerifier

ROWS = [json.loads(line) for line in Path(__file__).with_name("answer_pairs.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("response", [True, False])
def test_as_the_reviewer_judged(equal: bool, response: bool) -> None:
    verifier = MathVerifier()
    rows = [row for row in ROWS if (row["equal"], row["response"]) == (equal, response)]
    assert len(rows) > 70
    judge = verifier.verify if response else math_equal
    missed = [row for row in rows if judge(row["answer"], row["reference"]).score != float(equal)]
    assert missed == []
