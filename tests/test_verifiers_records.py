"""Problem sets: the layouts people have are recognised, and errors say where, what and what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from verifiers.errors import ConfigError, DataError, MissingFileError
from verifiers.records import load_problems, reference_answer


def put(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_our_layout(tmp_path: Path) -> None:
    path = put(
        tmp_path / "p.jsonl",
        '{"id": 7, "prompt": "1+1?", "answer": 2, "level": 1}\n'
        '{"id": "b", "prompt": [{"role": "user", "content": "2+2?"}], "answer": "4"}\n',
    )
    first, second = load_problems(path)
    assert (first.id, first.prompt, first.answer, first.metadata) == ("7", "1+1?", "2", {"level": 1})
    assert second.prompt == ({"role": "user", "content": "2+2?"},)
    assert [problem.id for problem in load_problems(path, limit=1)] == ["7"]


def test_gsm8k_and_math_layouts(tmp_path: Path) -> None:
    worked = "Half is <<48/2=24>>24.\n#### 1,072"
    path = put(tmp_path / "gsm8k.jsonl", json.dumps({"question": "Clips?", "answer": worked}) + "\n")
    (problem,) = load_problems(path)
    assert (problem.id, problem.prompt, problem.answer) == ("gsm8k-0", "Clips?", "1072")
    assert problem.metadata == {"answer": worked}
    solution = r"First \boxed{1}, so \boxed{\frac{1}{2}}."
    rows = [{"problem": "Q", "solution": solution, "level": "Level 1"}]
    (problem,) = load_problems(put(tmp_path / "math.json", json.dumps(rows)))
    assert (problem.id, problem.answer) == ("math-0", r"\frac{1}{2}")
    assert problem.metadata == {"solution": solution, "level": "Level 1"}
    (problem,) = load_problems([{"problem": "Q", "solution": solution, "answer": "0.5"}])
    assert (problem.id, problem.answer, problem.metadata) == ("problem-0", "0.5", {"solution": solution})


@pytest.mark.parametrize(
    ("text", "worked", "answer"),
    [
        ("so\n#### -1,234.5", False, "-1234.5"),
        ("so\n#### (1, 2)", False, "(1, 2)"),  # a comma that is no thousands separator stays
        ("#### 5\nand more", False, "#### 5\nand more"),
        ("a #### 5", False, "a #### 5"),
        (r"\boxed{5}", False, r"\boxed{5}"),
        (r"\boxed{5} \boxed {a\}{b}c}", True, r"a\}{b}c"),
        (r"\boxedness \boxed{5", True, None),
        ("none", True, None),
        (" ", False, None),
    ],
)
def test_reference_answers(text: str, worked: bool, answer: str | None) -> None:
    assert reference_answer(text, worked=worked) == answer


def test_parquet_and_rows_in_memory_agree(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"prompt": [{"role": "user", "content": f"{i}?"}], "answer": str(i)} for i in range(3)]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "problem.parquet")
    assert load_problems(tmp_path / "problem.parquet") == load_problems(rows)
    put(tmp_path / "bad.parquet", "no parquet")
    with pytest.raises(DataError, match=r"bad.parquet is not a readable Parquet file"):
        load_problems(tmp_path / "bad.parquet")
    with pytest.raises(MissingFileError, match="did you mean"):
        load_problems(tmp_path / "problems.parquet")


@pytest.mark.parametrize(
    ("rows", "settings_", "error", "message"),
    [
        (
            [{"question": "Q", "gold": "1"}],
            {"answer_column": "glod"},
            ConfigError,
            "answer_column 'glod' is not in the data set, which has 'question', 'gold'; did you mean 'gold'?",
        ),
        (
            [{"text": "Q"}],
            {},
            ConfigError,
            "the data set has no column prompt, problem or question, only 'text'; set prompt_column",
        ),
        ([], {}, DataError, "the data set holds no rows; a data set needs at least one problem"),
        (
            [{"id": "a", "prompt": "Q"}, {"id": "a", "prompt": "R"}],
            {},
            DataError,
            "row 1: the id 'a' is already that of row 0; make ids unique",
        ),
        (
            [{"prompt": "Q"}, {"problem": "R"}],
            {},
            DataError,
            "row 1: the field 'prompt' is missing; the row has 'problem'",
        ),
        (
            [{"prompt": " "}],
            {},
            DataError,
            "row 0: field 'prompt' must be a text or a list of messages, and not empty; got ' '",
        ),
        (
            [{"prompt": [{"role": "user"}]}],
            {},
            DataError,
            "row 0: message 0 of field 'prompt' must be an object with the texts 'role' and 'content'; "
            "got {'role': 'user'}",
        ),
        (
            [{"prompt": "Q", "answer": ["1"]}],
            {},
            DataError,
            "row 0: field 'answer' must be a text or a number; got list",
        ),
        (
            [{"problem": "Q", "solution": "none"}],
            {},
            DataError,
            "row 0: field 'solution' marks no answer with \\boxed{...} or '#### '; name the column that "
            "holds the answer",
        ),
        (
            [{"prompt": "Q"}],
            {"limit": 0},
            ConfigError,
            "limit must be 1 or more problems, or None for all; got 0",
        ),
        (
            {"train": [], "test": []},
            {},
            ConfigError,
            "a data set has several splits, 'train', 'test'; pass one of them",
        ),
    ],
)
def test_wrong_problem_sets_say_what_to_do(rows: object, settings_: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        load_problems(rows, **settings_)  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_line_numbers_and_settings_without_effect(tmp_path: Path) -> None:
    path = put(tmp_path / "p.jsonl", '{"prompt": "Q"}\n\n{"prompt": 3}\n')
    with pytest.raises(DataError, match=r"p.jsonl:3: field 'prompt' must be a text"):
        load_problems(path)
    with pytest.raises(ConfigError, match="split and subset choose parts of a hub data set"):
        load_problems(path, split="train")
    with pytest.raises(MissingFileError, match="does not exist; check the path"):
        load_problems(tmp_path / "nowhere" / "q.jsonl")


class FakeHub:
    """The part of `datasets` that is used, with two data sets."""

    @staticmethod
    def load_dataset(name: str, subset: str | None, split: str | None) -> object:
        splits = {"org/one": {"test": [{"question": "Q", "answer": "so\n#### 5"}]}, "two": {"a": [], "b": []}}
        if name not in splits:
            raise FileNotFoundError(f"no {name}")
        return splits[name] if split is None else splits[name][split]


def test_a_hub_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", FakeHub)  # type: ignore[arg-type]
    for split in (None, "test"):
        (problem,) = load_problems("org/one", split=split)
        assert (problem.id, problem.answer) == ("one-0", "5")
    with pytest.raises(ConfigError, match="two has the splits 'a', 'b'; set split to one of them"):
        load_problems("two")
    with pytest.raises(DataError) as caught:
        load_problems("org/nine")
    assert str(caught.value) == (
        "there is no file 'org/nine', and the hub data set of that name did not load (FileNotFoundError: no "
        "org/nine); check the name, split and subset"
    )


def test_local_files_do_not_load_datasets(tmp_path: Path) -> None:
    path = put(tmp_path / "p.jsonl", '{"prompt": "Q"}\n')
    code = (
        f"import sys; from verifiers.records import load_problems; load_problems({str(path)!r}); "
        f"print(sorted({{'datasets', 'pyarrow', 'numpy', 'torch'}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
