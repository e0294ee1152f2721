"""Where problems and labelled steps come from: a file, a hub data set, or the playground.

`playground:test:300` means the first 300 problems of the playground's test split; anything else is a path or hub
id for `verifiers.load_problems`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewardkit import playground
from verifiers.core import Problem, Response
from verifiers.errors import ConfigError, DataError
from verifiers.records import load_problems

if TYPE_CHECKING:
    from prm.formats import StepRow


def is_playground(source: str) -> bool:
    """Whether a source means the playground; a file whose name merely begins like it does not."""
    return source.partition(":")[0] == "playground"


def problems_from(
    source: str,
    *,
    limit: int | None = None,
    prompt_column: str | None = None,
    answer_column: str | None = None,
) -> list[Problem]:
    """Problems of a source. Raises ConfigError, MissingFileError or DataError in one sentence."""
    if not is_playground(source):
        return load_problems(source, prompt_column=prompt_column, answer_column=answer_column, limit=limit)
    parts = source.split(":")
    count = parts[2] if len(parts) > 2 else "300"
    seed = parts[3] if len(parts) > 3 else "0"
    if len(parts) > 4 or not count.isdigit() or int(count) < 1 or not seed.isdigit():
        raise ConfigError(
            f"a playground source is playground:SPLIT[:COUNT[:SEED]], such as playground:test:300; got {source!r}"
        )
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be 1 or more; got {limit!r}, leave it out to use every problem")
    split: Any = parts[1] if len(parts) > 1 else "test"
    return playground.problems(min(int(count), limit or int(count)), split=split, seed=int(seed))


def as_chat(problems: list[Problem], tokenizer: Any) -> list[Problem]:
    """Text prompts as one user message where the tokenizer has a chat template; others unchanged."""
    if not getattr(tokenizer, "chat_template", None):
        return problems
    return [
        Problem(
            id=problem.id,
            prompt=({"role": "user", "content": problem.prompt},),
            answer=problem.answer,
            metadata=problem.metadata,
        )
        if isinstance(problem.prompt, str)
        else problem
        for problem in problems
    ]


def responses_of(path: Path) -> list[tuple[dict[str, Any], Problem, Response]]:
    """(row, problem, response) of a JSON Lines file with `prompt` and `completions` (steps) or `response` (text)."""
    from verifiers.jsonl import numbered_rows
    from verifiers.steps import BLANK_LINE

    found = []
    for number, row in numbered_rows(path, required=("prompt",)):
        where = f"{path}, line {number}"
        prompt, steps, text = row["prompt"], row.get("completions"), row.get("response")
        if isinstance(prompt, list):
            prompt = tuple(prompt)
        elif not isinstance(prompt, str):
            raise DataError(f"{where}, field 'prompt': must be text or a list of chat messages; got {prompt!r:.80}")
        if isinstance(steps, list) and all(isinstance(step, str) for step in steps):
            text = BLANK_LINE.join(steps)
        if not isinstance(text, str):
            raise DataError(f"{where}: needs 'completions' (a list of step texts) or 'response' (text)")
        name = str(row.get("problem_id", row.get("id", number)))
        found.append((row, Problem(id=name, prompt=prompt), Response(problem_id=name, text=text)))
    return found


def labelled_rows(paths: Sequence[Path], layout: str = "stepwise") -> list[StepRow]:
    """Step-labelled rows of files in one layout: `stepwise` (TRL's or ours) or one of `prm.public_formats`."""
    from prm.public_formats import read_public

    return [row for path in paths for row in read_public(path, layout)]
