"""Every error a user can meet, as one family; each child is also the standard type one would expect.

    RewardkitError
    ├── ConfigError        (ValueError)         a setting or an argument is wrong
    ├── DataError          (ValueError)         a record is wrong: file, line and field are named
    ├── MissingFileError   (FileNotFoundError)  a path that must exist does not
    ├── ExistingRunError   (FileExistsError)    a run folder is there already and would be overwritten
    ├── ModelError         (RuntimeError)       a checkpoint cannot be used
    ├── EngineError        (RuntimeError)       generation failed, or a prompt does not fit
    ├── RewardError        (RuntimeError)       a reward function broke its contract
    └── MissingExtraError  (ImportError)        an optional dependency is not installed

A message says what is wrong, where, what was got and what to do, in one sentence. The command line prints it
without a traceback and exits with 2 (`usage` is True) or 1.
"""

from __future__ import annotations


class RewardkitError(Exception):
    """Base of all errors raised for users."""

    usage: bool = True
    """True where the user's input is at fault (exit code 2), False where the run failed (exit code 1)."""


class ConfigError(RewardkitError, ValueError):
    """A setting or an argument is wrong."""


class DataError(RewardkitError, ValueError):
    """A record is wrong; the message names file, line and field."""


class MissingFileError(RewardkitError, FileNotFoundError):
    """A path that must exist does not."""


class ExistingRunError(RewardkitError, FileExistsError):
    """A run folder exists and would be overwritten."""


class ModelError(RewardkitError, RuntimeError):
    """A checkpoint cannot be used for what it was asked to do."""


class EngineError(RewardkitError, RuntimeError):
    """Generation failed, or a prompt does not fit into the context."""


class RewardError(RewardkitError, RuntimeError):
    """A reward function broke its contract (wrong length, not a number, raised)."""

    usage = False


class MissingExtraError(RewardkitError, ImportError):
    """An optional dependency is not installed; the message carries the install command."""
