"""The command line: `rewardkit score | search | prm ... | orm ... | sft | dpo | merge | rejection | pairs | ...`.

Commands are named by import string and loaded when they run, so that `--help` needs no torch. Every command
takes one frozen dataclass; `--config job.yaml` fills it and flags win wherever they stand. Exit codes: 0 ok,
1 the run failed, 2 wrong usage or configuration, 3 a quality gate was not met, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import App, Parameter

from rewardkit import __version__
from verifiers.errors import ConfigError, MissingFileError, RewardkitError

OK, FAILED, USAGE, GATE, INTERRUPTED = 0, 1, 2, 3, 130

app = App(
    name="rewardkit",
    help="Is a language model's reasoning right, which step went wrong, and how to get more right answers.",
    version=__version__,
    suppress_keyboard_interrupt=False,  # `main` says what to do next
)
app.command("rewardkit.cli.score:score", name="score", help="Judge the responses of a JSON Lines file.")
app.command(
    "rewardkit.cli.search:search", name="search", help="Search strategies side by side, with any process reward model."
)
app.command("rewardkit.cli.report:report", name="report", help="Write a run folder's report.html.")
app.command(
    "rewardkit.cli.quickstart:quickstart",
    name="quickstart",
    help="The whole pipeline on the playground: labels, PRM, Best-of-16, report.",
)
prm = App(name="prm", help="Process reward models: label, convert, train, score, calibrate, eval.")
prm.command("rewardkit.cli.prm:label", name="label", help="Monte-Carlo step labels from roll-outs.")
prm.command("rewardkit.cli.prm:train", name="train", help="Train a process reward model on step labels.")
prm.command("rewardkit.cli.prm:evaluate", name="eval", help="Measure step scores against known step truth.")
prm.command("rewardkit.cli.prm_convert:convert", name="convert", help="Step labels from one layout to another.")
prm.command("rewardkit.cli.prm_score:score", name="score", help="Score steps with our own or a public checkpoint.")
prm.command("rewardkit.cli.prm_score:calibrate", name="calibrate", help="Make probabilities of a model's scores.")
app.command(prm)
orm = App(name="orm", help="Outcome reward models: train, calibrate, eval, score.")
orm.command("rewardkit.cli.orm:train", name="train", help="Train on preference pairs or labelled responses.")
orm.command("rewardkit.cli.orm:evaluate", name="eval", help="Accuracy, calibration, length bias, disagreement.")
orm.command("rewardkit.cli.orm:score", name="score", help="Score responses with our own or a public checkpoint.")
orm.command("rewardkit.cli.orm:calibrate", name="calibrate", help="Make probabilities of a model's scores.")
app.command(orm)
rl = App(name="rl", help="Reinforcement learning: train.")
rl.command("rewardkit.cli.rl:train", name="train", help="Train a policy online by rewards of any kind.")
app.command(rl)
app.command("rewardkit.cli.offline:pairs", name="pairs", help="Preference pairs and labels from verdicts on samples.")
app.command("rewardkit.cli.offline:rejection", name="rejection", help="Sample, verify, keep: rows to imitate.")
app.command("rewardkit.cli.offline:sft", name="sft", help="Supervised fine-tuning: imitate responses.")
app.command("rewardkit.cli.offline:dpo", name="dpo", help="Direct preference optimisation of a policy on pairs.")
app.command("rewardkit.cli.merge:merge", name="merge", help="Average the weights of models, without training.")


app.meta.suppress_keyboard_interrupt = False


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    config: Annotated[Path | None, Parameter(help="YAML file with the job's settings; flags win.")] = None,
) -> int:
    if config is not None:
        if not config.is_file():
            raise MissingFileError(f"there is no configuration file {config}; check --config")
        app.config = (cyclopts.config.Yaml(config, must_exist=True, use_commands_as_keys=False),)
    try:
        code = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    finally:
        app.config = ()
    return int(code or OK)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors for users are one line without a traceback."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return int(app.meta(tokens, exit_on_error=False, print_error=False, result_action="return_value") or OK)
    except RewardkitError as error:
        return _fail(str(error), USAGE if error.usage else FAILED)
    except cyclopts.CycloptsError as error:
        cause = _own_error(error)
        return _fail(str(cause or error).strip(), USAGE)
    except KeyboardInterrupt:
        return _fail("interrupted; a resumable job goes on with --resume", INTERRUPTED)


def _own_error(error: BaseException) -> ConfigError | None:
    """The ConfigError of a setting that cyclopts wrapped, if that is what happened."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ConfigError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def _fail(message: str, code: int) -> int:
    print(f"rewardkit: {message}", file=sys.stderr)
    return code
