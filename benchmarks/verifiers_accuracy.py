"""The math verifier and math-verify on labelled pairs of answers and on MATH's references.

One setting for all rows. Bare answers go to `math_equal`, completions to `MathVerifier.verify`; math-verify gets
answers boxed in dollars, the better of its wrappings. Needs the development data beside the checkout
(shared/data) and math-verify (`pip install -e '.[dev]'`); every row that RewardKit misses is printed.
"""

from __future__ import annotations

import collections
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from claims import arguments, figure, finish

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from renderings import perturbations, renderings

from verifiers.equality import math_equal
from verifiers.jsonl import read_jsonl
from verifiers.maths import MathVerifier

DATA = Path(__file__).parents[2] / "shared" / "data"
SYMPY = ("symbolic", "unproved", "timeout", "memory", "crash")


def peer() -> Callable[[str, str, bool], bool]:
    """math-verify as (response, reference, is a completion) -> equal."""
    from math_verify import parse, verify

    logging.disable(logging.ERROR)

    def judge(response: str, reference: str, completion: bool) -> bool:
        def wrap(text: str) -> str:
            return text if "$" in text or "\\boxed" in text or "\\(" in text else rf"$\boxed{{{text}}}$"

        gold = parse(wrap(reference))
        found = parse(response if completion else wrap(response))
        return bool(verify(gold, found))

    return judge


def scores(rows: list[dict[str, Any]], equal: list[bool]) -> dict[str, float]:
    """Accuracy, recall, and the number of false positives."""
    pairs = list(zip(rows, equal, strict=True))
    positive = [found for row, found in pairs if row["equal"]]
    return {
        "accuracy": sum(found == row["equal"] for row, found in pairs) / len(pairs),
        "recall": sum(positive) / len(positive),
        "false positives": sum(found and not row["equal"] for row, found in pairs),
        "negatives": len(pairs) - len(positive),
    }


def main() -> None:
    """Both arms over the same rows."""
    options = arguments(__doc__)
    if not DATA.exists():
        print(f"skipped: {DATA} is not there (development data, not part of the project)")
        sys.exit(0)
    labelled = read_jsonl(DATA / "verifier_equivalence_dev.jsonl", required=("gold", "pred", "equal"))
    rows = [row for row in labelled if not row.get("contested")]
    verifier, other = MathVerifier(), peer()
    kinds: collections.Counter[str] = collections.Counter()
    ours, theirs = [], []
    for row in rows:
        completion = row["kind"] == "completion"
        judge = verifier.verify if completion else math_equal
        verdict = judge(row["pred"], row["gold"])
        kinds[verdict.kind] += 1
        ours.append(verdict.score == 1.0)
        theirs.append(other(row["pred"], row["gold"], completion))
        if ours[-1] != row["equal"]:
            print(f"  missed [{row['category']}]: {row['gold'][:60]!r} against {row['pred'][-60:]!r}: {verdict}"[:300])
    mine, rival = scores(rows, ours), scores(rows, theirs)
    print(f"  stages: {dict(kinds.most_common())}")
    answers = [row["answer"] for row in read_jsonl(DATA / "math_answers.jsonl") if row["answer"]]
    answers = answers[: 400 if options.quick else None]
    texts = [(text, answer) for answer in answers for text in renderings(answer).values()]
    others = [(text, answer) for answer in answers for text in perturbations(answer).values()]
    wrong = [pair for pair in others if math_equal(*pair).score == 1.0]
    for text, answer in wrong:
        print(f"  perturbed and yet equal: {text!r} against {answer!r}")
    finish(
        "verifiers_accuracy",
        [
            figure(f"accuracy, {len(rows)} uncontested rows", mine["accuracy"], floor=0.975, peer=rival["accuracy"]),
            figure("recall", mine["recall"], floor=0.965, peer=rival["recall"]),
            figure(
                f"false positives of {mine['negatives']:.0f}",
                mine["false positives"],
                ceiling=2,
                peer=rival["false positives"],
            ),
            figure("math-verify in the same run: accuracy", rival["accuracy"]),
            figure("math-verify in the same run: recall", rival["recall"]),
            figure("math-verify in the same run: false positives", rival["false positives"]),
            figure("share of rows that reach sympy", sum(kinds[kind] for kind in SYMPY) / len(rows), ceiling=0.05),
            figure(
                f"{len(answers)} MATH references equal to themselves",
                sum(math_equal(answer, answer).score == 1.0 for answer in answers) / len(answers),
                floor=1.0,
            ),
            figure(
                f"{len(texts)} renderings of them equal",
                sum(math_equal(*pair).score == 1.0 for pair in texts) / len(texts),
                floor=0.99,
            ),
            figure(f"{len(others)} perturbations of them equal", len(wrong), ceiling=0),
        ],
        options,
    )


if __name__ == "__main__":
    main()
