"""Step rewards inside TRL's trainer: the advantages that reach its loss, what it logs, and what is refused."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import trl_fixed as given
from trl import GRPOConfig, GRPOTrainer

import rewardkit.rl.trl_trainer as trl_trainer
from rewardkit.rl.credit.step_rewards import StepConfig
from rewardkit.rl.rewards.functions import RewardList, as_part
from rewardkit.rl.rewards.scored import StepRewards
from rewardkit.rl.rewards.workers import RewardWorkers
from rewardkit.rl.trl_trainer import INSTALL, StepGRPOTrainer, require_version
from verifiers.core import Verdict
from verifiers.errors import ConfigError, MissingExtraError

ROOT = Path(__file__).parents[1]
OUTCOMES = (1.0, None, 0.25, 0.25, 0.75, -1.0, 2.0, 0.75)
STEPS = (
    ((0.5, 0.9), (2, 3)),
    ((0.5,), (0,)),
    ((0.875,), (3,)),
    ((0.75, 0.25, 0.9), (1, 3, 4)),
    None,
    ((0.5, 0.5), (2, 6)),
    ((0.5,), (0,)),
    ((0.5, 0.5), (1, 4)),
)
# By hand, lambda 1/2, not scaled. First group: Phi_0 = (1 + 1/4 + 1/4) / 3 = 1/2.
BY_HAND = (
    [0.25] * 3 + [0.5] * 2,  # r = 0, 1 - 1/2; the end mark belongs to the last step
    [0.0] * 2,  # no outcome
    [0.0625] * 4 + [-0.625] * 3,  # cut off: r = 3/8, 1/4 - 7/8 in the step that nobody scored
    [0.0] * 2 + [-0.5] * 2 + [0.0] * 2,  # r = 1/4, -1/2, 0
    # second group: Phi_0 = 5/8
    [0.125] * 3,  # no steps: 3/4 - 5/8
    [-0.875] * 3 + [-1.5] * 4,  # r = -1/8, -1 - 1/2
    [1.375],  # 2 - 5/8
    [0.0] * 2 + [0.25] * 3,  # r = -1/8, 3/4 - 1/2
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return given.save_llama(tmp_path_factory.mktemp("llama"))


def part(name: str, values: Sequence[Any], **settings: Any) -> Any:
    """A reward that says what is written down, called in this process."""
    return as_part(name, RewardWorkers(given.trl_reward(values), name=name, in_process=True), **settings)


def rewards(outcomes: Sequence[Any] = OUTCOMES, steps: Sequence[Any] = STEPS) -> RewardList:
    scores = [None if one is None else StepRewards(*one) for one in steps]
    return RewardList([part("outcome", outcomes), part("quality", scores, optional=True)])


def trainer_of(
    folder: Path,
    out: Path,
    given_rewards: Any,
    *,
    steps: StepConfig | None = None,
    further: Any = None,
    **settings: Any,
) -> Any:
    from transformers import AutoModelForCausalLM

    return StepGRPOTrainer(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        given_rewards,
        given.arguments(GRPOConfig, out, **settings),
        steps=steps,
        answer_column=None,
        **{"train_dataset": given.data(), "processing_class": given.word_tokenizer()} | (further or {}),
    )


def scored(trainer: Any) -> dict[str, Any]:
    trainer.model.train()
    found: dict[str, Any] = given.fixed(trainer)._generate_and_score_completions(given.inputs())
    return found


def padded(rows: Sequence[Sequence[float]]) -> torch.Tensor:
    return torch.tensor([[*row, *[0.0] * (given.LIMIT - len(row))] for row in rows])


def test_the_loss_gets_the_advantage_of_each_token_s_step(folder: Path, tmp_path: Path) -> None:
    trainer = trainer_of(folder, tmp_path, rewards(), steps=StepConfig(scale="none"), scale_rewards="none")
    inputs = scored(trainer)
    expected_BT = padded(BY_HAND)
    torch.testing.assert_close(inputs["advantages"], expected_BT, rtol=0, atol=1e-7)
    # On policy dapo's gradient with respect to a log-probability is -A over the number of tokens.
    kept: list[torch.Tensor] = []
    read = trainer._get_per_token_logps_and_entropies

    def keep(*args: Any, **kwargs: Any) -> Any:
        found = read(*args, **kwargs)
        kept.append(found[0])
        return found

    trainer._get_per_token_logps_and_entropies = keep
    loss = trainer._compute_loss(trainer.model, inputs)
    (gradient_BT,) = torch.autograd.grad(loss, kept[0])
    torch.testing.assert_close(gradient_BT, -expected_BT / 36, rtol=1e-5, atol=1e-8)


def test_scaling_divides_by_the_deviation_of_the_group_s_outcomes(folder: Path, tmp_path: Path) -> None:
    trainer = trainer_of(folder, tmp_path, rewards())
    # 1, 1/4, 1/4: s^2 = (1/4 + 1/16 + 1/16) / 2; 3/4, -1, 2, 3/4: s^2 = (1/64 + 169/64 + 121/64 + 1/64) / 3
    deviations_B = torch.tensor([0.1875**0.5] * 4 + [(292 / 192) ** 0.5] * 4)
    expected_BT = padded(BY_HAND) / (deviations_B[:, None] + 1e-4)
    torch.testing.assert_close(scored(trainer)["advantages"], expected_BT, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("scale", ["group", "none"])
def test_with_one_step_and_lambda_one_the_advantages_are_trl_s(scale: str, folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    steps = [((0.25,), (len(ids) - 1,)) for ids in given.RESPONSES]
    config = StepConfig(lam=1.0, scale=scale)  # type: ignore[arg-type]
    ours = scored(trainer_of(folder, tmp_path, rewards(steps=steps), steps=config, scale_rewards=scale))
    plain = GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), given.trl_reward(OUTCOMES),
        given.arguments(GRPOConfig, tmp_path, scale_rewards=scale), given.data(),
        processing_class=given.word_tokenizer(),
    )  # fmt: skip
    theirs = scored(plain)
    expected_BT = theirs["advantages"][:, None] * theirs["completion_mask"]
    torch.testing.assert_close(ours["advantages"], expected_BT, rtol=0, atol=1e-6)
    assert theirs["advantages"].abs().min() == 0 and theirs["advantages"].abs().max() > 1
    rest = set(ours) - {"advantages"}
    assert rest == set(theirs) - {"advantages"}
    for key in rest:
        torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=0)


def test_unscored_responses_get_nothing_and_are_counted(folder: Path, tmp_path: Path) -> None:
    trainer = trainer_of(folder, tmp_path, rewards())
    inputs = scored(trainer)
    assert inputs["advantages"][1].tolist() == [0.0] * given.LIMIT
    logged = {name: values for name, values in trainer._metrics["train"].items()}
    assert logged["total/undecided"] == logged["steps/unscored"] == logged["steps/left_out"] == [1 / 8]
    assert logged["reward/unscored"] == logged["reward/outcome/unscored"] == [1 / 8]
    assert logged["steps/outcome_only"] == [1 / 8]
    assert logged["steps/open_step"] == [1 / 8]  # the other one that is cut off was scored to its end
    assert logged["steps/constant"] == [0.0]
    assert logged["steps/number"] == [(2 + 1 + 2 + 3 + 1 + 2 + 1 + 2) / 8]
    known = [value for value in OUTCOMES if value is not None]
    assert logged["reward"] == logged["reward/outcome/mean"] == pytest.approx([sum(known) / 7])
    assert "reward/outcome/abstained" not in logged


def test_evaluation_has_its_own_groups_and_its_own_log(folder: Path, tmp_path: Path) -> None:
    trainer = trainer_of(
        folder, tmp_path, rewards(), steps=StepConfig(scale="none"), scale_rewards="none", num_generations_eval=2
    )
    given.fixed(trainer).model.eval()
    found_BT = trainer._generate_and_score_completions(given.inputs())["advantages"]
    # Groups of two: the first response is the only scored one of its group, Phi_0 = 1 and r = -1/2, 1/2.
    torch.testing.assert_close(found_BT[0], padded([[-0.25] * 3 + [0.5] * 2])[0], rtol=0, atol=1e-7)
    # Phi_0 = 1/4 of the next two; in a step that nobody scored Phi stays where it was until the outcome.
    torch.testing.assert_close(found_BT[2], padded([[0.3125] * 4 + [-0.625] * 3])[0], rtol=0, atol=1e-7)
    assert trainer._metrics["eval"]["steps/unscored"] == [1 / 8]
    assert not trainer._metrics["train"]


def test_two_steps_of_training_move_the_policy_and_leave_a_log(folder: Path, tmp_path: Path) -> None:
    def quality(completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[Any]:
        """Every second token ends a step, and small ids are good."""
        found = []
        for ids in completion_ids:
            ends = tuple(sorted({*range(1, len(ids), 2), len(ids) - 1}))
            found.append(StepRewards(tuple(1 - ids[end] / 16 for end in ends), ends))
        return found

    def odd(completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[Any]:
        return [sum(one % 2 for one in ids) / len(ids) for ids in completion_ids]

    parts = [
        as_part(name, RewardWorkers(one, name=name, in_process=True))
        for name, one in (("quality", quality), ("odd", odd))
    ]
    trainer = trainer_of(
        folder, tmp_path, RewardList(parts), max_steps=4, learning_rate=1e-2, logging_strategy="steps", logging_steps=1,
        per_device_train_batch_size=4, steps_per_generation=2, num_iterations=2, log_completions=True,
    )  # fmt: skip
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    seen: list[torch.Tensor] = []
    compute = trainer._compute_loss

    def look(model: Any, inputs: dict[str, Any]) -> Any:
        seen.append(inputs["advantages"])
        assert inputs["advantages"].shape == inputs["completion_ids"].shape
        assert inputs["advantages"][inputs["completion_mask"] == 0].count_nonzero() == 0
        return compute(model, inputs)

    trainer._compute_loss = look
    trainer.train()
    # Eight responses, in two halves, each twice; tokens of one response differ.
    assert len(seen) == 4
    torch.testing.assert_close(seen[2], seen[0], rtol=0, atol=0)
    assert any((row.unique().numel() > 2) for row in seen[0])
    assert sum(float((trainer.model.state_dict()[name] - value).norm()) for name, value in before.items()) > 0.1
    first = trainer.state.log_history[0]
    assert first["reward"] == pytest.approx(first["reward/odd/mean"])
    assert 0 < first["reward/quality/mean"] < 1
    assert first["steps/left_out"] == 0.0
    assert first["steps/number"] >= first["completions/mean_length"] / 2
    table = pd.read_parquet(tmp_path / "completions" / "completions_00001.parquet")
    assert table["total"].tolist() == pytest.approx(table["odd"].tolist())
    assert set(table["total_reason"]) == {"the sum of the rewards"}
    rows = torch.cat(seen[:2])
    means = [float(row[: int(size)].mean()) for row, size in zip(rows, _lengths(rows, trainer), strict=True)]
    assert sorted(table["advantage"].tolist()) == pytest.approx(sorted(means), abs=1e-6)


def _lengths(rows: torch.Tensor, trainer: Any) -> list[int]:
    halves = trainer._buffered_inputs
    return [int(size) for half in halves for size in half["completion_mask"].sum(1)]


def test_groups_may_lie_in_several_processes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = scored(trainer_of(folder, tmp_path, rewards()))["advantages"]
    trainer = trainer_of(folder, tmp_path, rewards())
    inputs = given.inputs()
    scored(trainer)
    everything = list(trainer._listener.heard)
    # What the second of two processes has, when the first one has six of the eight responses.
    monkeypatch.setattr(trl_trainer, "gather_object", lambda own: everything)
    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", lambda self, given_: second)
    monkeypatch.setattr(type(trainer.accelerator), "process_index", property(lambda self: 3))
    second = {"advantages": torch.zeros(2), "completion_ids": torch.zeros(2, given.LIMIT, dtype=torch.long)}
    found = trainer._generate_and_score_completions(inputs[6:])
    torch.testing.assert_close(found["advantages"], whole[6:], rtol=0, atol=0)


class Half:
    """A verifier: every answer is half right."""

    def judge(self, problems: Sequence[Any], responses: Sequence[Any]) -> list[Verdict]:
        return [Verdict.graded(0.5, "half") for _ in responses]


REFUSED: dict[str, tuple[Mapping[str, Any], str]] = {
    "batch": ({"scale_rewards": "batch"}, "GRPOConfig(scale_rewards='batch') does not go with StepGRPOTrainer: "),
    "weights": ({"reward_weights": [1.0]}, "the weights are the reward list's; set it to None"),
    "sum": ({"multi_objective_aggregation": "normalize_then_sum"}, "set it to 'sum_then_normalize'"),
    "level": ({"importance_sampling_level": "sequence"}, "one ratio a response cannot carry an advantage a token"),
    "scale": ({"scale_rewards": "none", "steps": StepConfig()}, "set both to 'group' or both to 'none'"),
    "functions": ({"further": {"reward_funcs": [len]}}, "takes no reward_funcs: give them in `rewards`; leave it out"),
    "tools": ({"further": {"tools": [len]}}, "takes no tools: steps are pieces of one text"),
    "no_steps": ({"given_rewards": {"half": Half()}}, "no reward of half scores steps"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together_is_refused(name: str, folder: Path, tmp_path: Path) -> None:
    settings, said = REFUSED[name]
    with pytest.raises(ConfigError, match=re.escape(said)):
        trainer_of(folder, tmp_path, **{"given_rewards": rewards(), **settings})


def test_a_list_that_scores_no_steps_after_all_is_refused(folder: Path, tmp_path: Path) -> None:
    plain = RewardList([part("outcome", given.REWARDS)])
    with pytest.raises(ConfigError, match="no reward scored the steps of any response; let one return StepRewards"):
        scored(trainer_of(folder, tmp_path, plain))


@pytest.mark.parametrize("version", ["1.15.3", "1.17.0", "2.0.0", "0.16.1"])
def test_another_trl_is_refused(version: str) -> None:
    with pytest.raises(ConfigError, match=f"tested with TRL 1.16 alone; got TRL {version}; to get 1.16: pip install"):
        require_version(version)
    require_version("1.16.0")
    require_version("1.16.2.dev0")


def test_without_trl_the_install_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.delitem(sys.modules, "rewardkit.rl.trl_trainer")
    with pytest.raises(MissingExtraError, match=re.escape(f"needs TRL; to get it: {INSTALL}")):
        importlib.import_module("rewardkit.rl.trl_trainer")


def test_nothing_else_imports_trl_or_its_trainer() -> None:
    importers = set()
    for package in ("verifiers", "prm", "search", "rewardkit"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text()
            for node in ast.walk(ast.parse(text)) if "trl" in text else ():
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if any(name.split(".")[0] == "trl" or name == "rewardkit.rl.trl_trainer" for name in names):
                    importers.add(path.relative_to(ROOT).as_posix())
    assert importers == {"rewardkit/rl/trl_trainer.py"}


def test_the_guide_s_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "trl.md").read_text(), flags=re.S)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "docs/trl.md", "exec"), {"__name__": "guide"})
    mean, steps = capsys.readouterr().out.splitlines()[-1].split()
    assert float(mean) in (0.0, 0.25, 0.5, 0.75, 1.0)
    assert 1 < float(steps) < 64  # blank lines of the policy's own text
