"""The shape of the code itself: who imports whom, what an import costs, what no file may do."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "verifiers": {"verifiers"},
    "prm": {"prm", "verifiers"},
    "search": {"search", "verifiers"},
    "rewardkit": {"rewardkit", "prm", "search", "verifiers"},
}
HEAVY = {"torch", "numpy", "transformers", "sympy", "scipy", "sklearn", "datasets", "plotly", "tokenizers"}
FILES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}


def imports(tree: ast.AST, home: str, *, at_import: bool = False) -> Iterator[str]:
    """Dotted names that a module imports; `at_import` leaves out functions and TYPE_CHECKING blocks."""
    for node in ast.iter_child_nodes(tree):
        if at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if at_import and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{home}: imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else str(node.module)
        else:
            yield from imports(node, home, at_import=at_import)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def test_there_is_something_to_read() -> None:
    assert len(FILES) > 40
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(MAY_IMPORT)
    found = set(imports(ast.parse("import a.b\ndef f():\n    from verifiers import core, Verdict"), "x"))
    assert found == {"a.b", "verifiers.core", "verifiers"}


def test_imports_form_the_diamond() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, path in MODULES.items()
        for name in imports(parsed(path), module)
        if name.split(".")[0] in MAY_IMPORT and name.split(".")[0] not in MAY_IMPORT[module.split(".")[0]]
    ]
    assert wrong == []


def test_imports_run_in_no_circle() -> None:
    graph = {
        module: {name for name in imports(parsed(path), module, at_import=True) if name in MODULES}
        for module, path in MODULES.items()
    }
    assert sum(map(len, graph.values())) > 50
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail[trail.index(module) :], module))
        if module not in done:
            for name in sorted(graph[module]):
                visit(name, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_imported_names_of_ours_exist() -> None:
    missing = [
        f"{module} imports {name}"
        for module, path in MODULES.items()
        for name in imports(parsed(path), module)
        if name.split(".")[0] in MAY_IMPORT and name not in MODULES
    ]
    assert missing == []


def test_verifiers_import_nothing_heavy_when_imported() -> None:
    heavy = [
        f"{module} imports {name}"
        for module, path in MODULES.items()
        if module.split(".")[0] == "verifiers"
        for name in imports(parsed(path), module, at_import=True)
        if name.split(".")[0] in HEAVY
    ]
    assert heavy == []


@pytest.mark.parametrize(
    ("code", "forbidden"),
    [
        ("import rewardkit", HEAVY),
        ("import verifiers", HEAVY),
        ("import verifiers.maths", HEAVY),
        ("from rewardkit import verifiers, prm, search; dir(prm), dir(search)", HEAVY),
        ("from search import ScriptedEngine", HEAVY - {"numpy"}),
        ("from rewardkit.cli import main; assert main(['--help']) == 0", HEAVY),
    ],
)
def test_imports_are_light(code: str, forbidden: set[str]) -> None:
    report = f"import sys; print('LOADED', *sorted({forbidden!r} & sys.modules.keys()))"
    found = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1].split() == ["LOADED"]


def stranger(tmp_path: Path, code: str) -> str:
    """What is said when `tmp_path` stands before ours in the search path."""
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 1
    return found.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["search", "prm", "verifiers"])
def test_strangers_are_named_and_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.py").write_text("answer = 42\n")
    said = stranger(tmp_path, f"from rewardkit import {name}")
    assert said == (
        f"ImportError: rewardkit.{name} must be RewardKit's own package {name!r}, but Python found "
        f"{tmp_path / name}.py; install RewardKit into an environment of its own (without the other {name!r}), "
        "or rename the file"
    )


def test_strange_packages_are_refused_too(tmp_path: Path) -> None:
    (tmp_path / "verifiers").mkdir()
    (tmp_path / "verifiers" / "__init__.py").write_text("REWARDKIT_PACKAGE = 'something else'\n")
    said = stranger(tmp_path, "import rewardkit; rewardkit.verifiers")
    assert f"but Python found {tmp_path / 'verifiers' / '__init__.py'};" in said


def test_the_facade_hands_on_ours() -> None:
    import rewardkit

    for name in ("verifiers", "prm", "search"):
        assert getattr(rewardkit, name) is sys.modules[name]
        assert name == sys.modules[name].REWARDKIT_PACKAGE
        assert name in dir(rewardkit)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        rewardkit.nothing  # noqa: B018


@pytest.mark.parametrize("package", ["verifiers", "prm", "search"])
def test_every_public_name_resolves(package: str) -> None:
    module = importlib.import_module(package)
    homes: dict[str, str] = module._HOMES
    for name, home in homes.items():
        assert home.split(".")[0] == package
        assert getattr(module, name) is getattr(importlib.import_module(home), name)
    assert dir(module) == sorted([*homes, "REWARDKIT_PACKAGE"])
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018
    # what a type checker is told is what happens
    told = {
        alias.asname: node.module
        for node in ast.walk(parsed(ROOT / package / "__init__.py"))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    assert told == homes


def test_no_module_bears_a_standard_name() -> None:
    assert [m for m in MODULES if m.split(".")[-1] in sys.stdlib_module_names - {"__main__"}] == []


def test_every_file_opens_with_a_paragraph_and_is_short() -> None:
    for path in FILES:
        name = str(path.relative_to(ROOT))
        assert (ast.get_docstring(parsed(path)) or "").strip(), f"{name} has no opening docstring"
        lines = len(path.read_text().splitlines())
        assert lines < 350, f"{name} has {lines} lines"


def calls(path: Path) -> Iterator[str]:
    """Names of what is called: `eval` for eval(...), `.sympify` for sympy.sympify(...)."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield f".{node.func.attr}"


def test_verifiers_never_evaluate_text() -> None:
    forbidden = {"eval", "exec", "compile", "__import__"}
    builders = ("sympify", "parse_expr", "parse_latex", "lambdify", "S")
    forbidden |= {*builders, *(f".{name}" for name in builders), ".eval", ".exec", ".literal_eval"}
    for module, path in MODULES.items():
        if module.split(".")[0] == "verifiers":
            assert forbidden.isdisjoint(calls(path)), module
    assert {"eval", ".sympify"} <= set(calls_of("eval('1'); sympy.sympify('1')"))


def calls_of(code: str) -> list[str]:
    """The same reading for a piece of text, to show that it can find something."""

    class Text:
        def read_text(self) -> str:
            return code

    return list(calls(Text()))  # type: ignore[arg-type]
