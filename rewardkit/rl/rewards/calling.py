"""Finding a user's reward function and calling it: what runs in a worker process, and in the caller's where asked for.

A function is named `my_rewards.py:reward` (a file) or `package.module:name`. It is called as TRL 1.16 calls it,

    f(prompts, completions, completion_ids, answer, id, **columns of the data set, trainer_state, log_extra, log_metric)

with one that takes no **kwargs given only what it names; an async one is awaited. Whatever happens (it raises, calls
sys.exit, returns something else than asked for) becomes a plain JSON-able reply with a kind and a detail, row by row
where a row is at fault. `python -m rewardkit.rl.rewards.calling` is the worker: it loads the function first, so that a
slow import is not counted against the first call, and answers until its pipe closes (`verifiers/sandbox.py`).
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import json
import math
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rewardkit.rl.rewards.scored import StepRewards, usable
from verifiers.errors import ConfigError, MissingFileError

VARIABLE = "REWARDKIT_REWARD_FUNCTION"
"""Environment variable that tells a worker what to load, as JSON."""


def split_spec(spec: str) -> tuple[str, str]:
    """("my_rewards.py" or "package.module", "name"). Raises ConfigError or MissingFileError."""
    where, colon, name = spec.rpartition(":")
    if not colon or not where or not name.replace(".", "_").isidentifier():
        raise ConfigError(
            f"a reward function is named file.py:function or package.module:function; got {spec!r}; "
            "write for example my_rewards.py:reward"
        )
    if where.endswith(".py"):
        if not Path(where).is_file():
            raise MissingFileError(f"there is no file {where}, which the reward {spec!r} names; check the path")
    elif not all(part.isidentifier() for part in where.split(".")):
        raise ConfigError(f"{where!r} in the reward {spec!r} is neither a .py file nor the dotted name of a module")
    return where, name


def load_function(spec: str) -> Callable[..., Any]:
    """The function that `spec` names. Raises ConfigError or MissingFileError, and whatever importing it raises."""
    where, name = split_spec(spec)
    if where.endswith(".py"):
        path = Path(where).resolve()
        sys.path.insert(0, str(path.parent))  # its neighbours
        found = importlib.util.spec_from_file_location(path.stem, path)
        assert found is not None and found.loader is not None
        module = importlib.util.module_from_spec(found)
        sys.modules.setdefault(path.stem, module)
        found.loader.exec_module(module)
    else:
        module = importlib.import_module(where)
    function: Any = module
    for part in name.split("."):
        if not hasattr(function, part):
            known = ", ".join(sorted(n for n, v in vars(module).items() if callable(v) and not n.startswith("_")))
            raise ConfigError(f"{where} has no {name!r}; it has {known or 'no functions'}")
        function = getattr(function, part)
    if not callable(function):
        raise ConfigError(f"{spec} is no function but a {type(function).__name__}; name a callable")
    result: Callable[..., Any] = function
    return result


RESERVED = ("mean", "std", "unscored")
"""What a reward's own figures are called."""


def call(function: Callable[..., Any], columns: Mapping[str, Any]) -> dict[str, Any]:
    """Call it on a batch: {"entries", "metrics", "extra"}, or {"kind", "detail"} where the whole batch is at fault.

    An entry is a number, None, {"values", "ends"} or {"kind", "detail"}. MemoryError is let through.
    """
    count = len(columns["completions"])
    metrics: dict[str, float] = {}
    extra: dict[str, list[str]] = {}

    def log_metric(name: str, value: Any) -> None:
        if name in RESERVED:
            raise ValueError(f"log_metric({name!r}) would take the place of the reward's own figure; use another name")
        if not math.isfinite(number := float(value)):
            raise ValueError(f"log_metric({name!r}) got {value!r}; log finite numbers")
        metrics[str(name)] = number

    def log_extra(name: str, values: Any) -> None:
        extra[str(name)] = [str(value) for value in values]
        if len(extra[str(name)]) != count:
            raise ValueError(f"log_extra({name!r}) got {len(extra[str(name)])} values for {count} completions")

    given = {**columns, "trainer_state": None, "log_metric": log_metric, "log_extra": log_extra}
    try:
        returned = _called(function, given)
        values = None if isinstance(returned, (str, bytes, Mapping)) or not hasattr(returned, "__len__") else returned
        if values is None:
            return {"kind": "wrong_type", "detail": f"returned {_article(returned)}"}
        if len(values) != count:
            return {"kind": "wrong_length", "detail": f"returned {len(values)} values for {count} completions"}
        tokens = [len(ids) for ids in columns["completion_ids"]]
        entries = [_entry(value, row, tokens[row]) for row, value in enumerate(values)]
    except MemoryError:
        raise
    except BaseException as error:  # sys.exit in a reward function must not end a run
        if isinstance(error, KeyboardInterrupt):
            raise
        return {"kind": "raised", "detail": f"raised {_told(error)}"}
    return {"entries": entries, "metrics": metrics, "extra": extra}


def _called(function: Callable[..., Any], given: Mapping[str, Any]) -> Any:
    named = _parameters(function)
    arguments = given if named is None else {key: value for key, value in given.items() if key in named}
    returned = function(**arguments)
    if inspect.iscoroutine(returned):
        # A thread of its own: the caller may already be inside an event loop.
        with ThreadPoolExecutor(max_workers=1) as threads:
            return threads.submit(asyncio.run, returned).result()
    return returned


def _parameters(function: Callable[..., Any]) -> frozenset[str] | None:
    """The names it takes; None for all of them."""
    try:
        found = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in found.values()):
        return None
    return frozenset(found)


def _entry(value: Any, row: int, tokens: int) -> Any:
    """One value as JSON."""
    if value is None:
        return None
    if isinstance(value, StepRewards):
        fault = value.fault(tokens)
        if fault:
            return {"kind": "bad_steps", "detail": f"returned StepRewards with {fault} for completion {row}"}
        return {"values": list(value.values), "ends": list(value.ends)}
    try:
        number = math.nan if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not usable(number):
        return {"kind": "not_a_number", "detail": f"returned {value!r:.60} for completion {row}"}
    return number


def _article(value: Any) -> str:
    return "None" if value is None else f"one {type(value).__name__}, not a list"


def _told(error: BaseException) -> str:
    """Type, message and the last line of the user's own code."""
    text = " ".join(str(error).split())
    said = f"{type(error).__name__}: {text}"[:200] if text else type(error).__name__
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    return f"{said} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else said


def _load(told: Mapping[str, Any]) -> Callable[..., Any]:
    """What a worker is told to load: an import string, or a file with a pickled callable."""
    # Behind ours, and only now: a user may own a `search.py`.
    sys.path += [place for place in told["path"] if place not in sys.path]
    if "spec" in told:
        return load_function(told["spec"])
    function: Callable[..., Any] = pickle.loads(Path(told["pickle"]).read_bytes())
    return function


def _main() -> None:
    from verifiers.sandbox import serve

    function: Callable[..., Any] | None = None
    failed = ""
    null = os.open(os.devnull, os.O_RDWR)
    kept = os.dup(1)
    os.dup2(null, 1)  # what an import prints must not reach the pipe
    try:
        function = _load(json.loads(os.environ[VARIABLE]))
    except BaseException as error:
        failed = _told(error)
    sys.stdout.flush()
    os.dup2(kept, 1)
    os.close(kept)
    # Left as it is until now: `serve` caps memory, and an import needs more of it than a call.

    def handle(request: dict[str, Any]) -> dict[str, Any]:
        if function is None:
            return {"kind": "not_loaded", "detail": failed}
        if "file" not in request:
            return {}
        # Written by the parent, which is the one who asks.
        return call(function, pickle.loads(Path(request["file"]).read_bytes()))

    serve(handle)


if __name__ == "__main__":
    _main()
