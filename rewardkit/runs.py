"""Run folders: everything a run was asked, met and made, in one place a stranger can read.

    config.yaml    the job; `rewardkit <verb> --config <run>/config.yaml` runs it again
    env.json       versions, machine, git revision, the verb
    metrics.jsonl  one line a logged step
    samples.jsonl  what was generated, with reasons
    results.json   the figures
    report.html    the same for people

A folder that exists is an error unless the job is resumed, and then the job must be the same.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from verifiers.errors import ConfigError, ExistingRunError, MissingFileError
from verifiers.jsonl import JsonlAppender

NOT_THE_JOB = ("out", "resume")
"""Fields of a job that say where it goes and not what it does."""


class RunFolder:
    """An open run folder. Use as a context manager, or call `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._appenders: dict[str, JsonlAppender] = {}

    @classmethod
    def create(cls, verb: str, job: Any, *, out: Path | None, resume: bool = False) -> RunFolder:
        """Make `out` (default runs/<verb>-<date>) or, with `resume`, open it again.

        Raises ExistingRunError for a folder that is there, MissingFileError for one to resume that is not,
        ConfigError when the job to be resumed is another one.
        """
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        path = out or Path("runs") / f"{verb.replace(' ', '-')}-{stamp}"
        config = plain(job)
        if resume:
            cls._check_same(path, config)
        elif path.exists() and (not path.is_dir() or any(path.iterdir())):
            further = ", or go on with it by --resume" if hasattr(job, "resume") else ""
            raise ExistingRunError(f"the run folder {path} exists already; choose another --out{further}")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"the run folder {path} cannot be made ({error.strerror or error}); choose another --out"
            ) from error
        run = cls(path)
        if not resume:
            (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
            run.write_json("env.json", environment(verb))
        return run

    @staticmethod
    def _check_same(path: Path, config: Mapping[str, Any]) -> None:
        if not (path / "config.yaml").exists():
            raise MissingFileError(f"there is no run to resume in {path} (no config.yaml); leave --resume out")
        before = yaml.safe_load((path / "config.yaml").read_text())
        changed = [name for name in config if before.get(name) != config[name]]
        if changed:
            name = changed[0]
            raise ConfigError(
                f"the run in {path} was started with {name}={before.get(name)!r}, not {config[name]!r}; resume it "
                "with its own settings, or start a new one with another --out"
            )

    def append(self, name: str, *rows: Mapping[str, Any]) -> None:
        """Add rows to a JSON Lines file of this run; on return they are on disk."""
        if name not in self._appenders:
            self._appenders[name] = JsonlAppender(self.path / name)
        self._appenders[name].append(*rows)

    def log(self, row: Mapping[str, Any]) -> None:
        """Add a line of metrics."""
        self.append("metrics.jsonl", row)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file whole: a temporary file first, then renamed."""
        temporary = self.path / f".{name}.part"
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
        os.replace(temporary, self.path / name)

    def close(self) -> None:
        """Release the files."""
        for appender in self._appenders.values():
            appender.close()
        self._appenders.clear()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()


def plain(job: Any) -> dict[str, Any]:
    """A job as YAML-ready values; nested dataclasses are flattened, as their flags are.

    A field whose metadata has a "prefix" gives it to the names in it, as its flags have it.
    """
    found: dict[str, Any] = {}
    for field in fields(job):
        if field.name in NOT_THE_JOB:
            continue
        value = getattr(job, field.name)
        if is_dataclass(value):
            prefix = field.metadata.get("prefix", "")
            found |= {prefix + name: setting for name, setting in plain(value).items()}
        else:
            found[field.name] = _yaml_value(value)
    return found


def _yaml_value(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [_yaml_value(item) for item in value]
    return value


def environment(verb: str) -> dict[str, Any]:
    """Versions, machine and git revision."""
    packages = ("rewardkit", "torch", "transformers", "numpy", "sympy", "datasets", "accelerate")
    return {
        "verb": verb,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
        "machine": {"system": platform.platform(), "cpus": os.cpu_count(), "gpu": _gpu()},
        "git": _git(),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def _git() -> dict[str, Any] | None:
    """Revision of the checkout this package runs from; None where it is not one."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.strip()

    try:
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
