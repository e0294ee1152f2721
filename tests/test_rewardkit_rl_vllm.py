"""The loop on a real vLLM in this process: its weights are the trainer's after every update (run by `.ci/vllm`).

In a pytest process of its own, because vLLM here sets up torch.distributed and keeps its settings for good.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_laws import make_checkpoint, need_vllm, prefixes_of

from rewardkit.rl.config import RlConfig
from rewardkit.rl.policy.models import Models
from rewardkit.rl.policy.reader import Drawn, TokenReader
from rewardkit.rl.sampling.sampler import VllmSampler, plain_weights
from verifiers.core import GenerationRequest, Sampling
from verifiers.errors import EngineError, ModelError
from verifiers.jsonl import read_jsonl

pytestmark = pytest.mark.filterwarnings("ignore")
TEMPERATURE = 0.7
SAMPLING = Sampling(temperature=TEMPERATURE, max_new_tokens=20)


@pytest.fixture(scope="module")
def checkpoint(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_vllm()
    folder = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(folder, tiny_tokenizer, seed=0)
    return folder


def config(init: Path, **more: Any) -> RlConfig:
    return RlConfig(init=str(init), engine="vllm", vllm_eager=True, engine_rows=32, temperature=TEMPERATURE, **more)


@pytest.fixture(scope="module")
def sampler(checkpoint: Path) -> Iterator[VllmSampler]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        models = Models(config(checkpoint))
        before = torch.get_rng_state()
        made = VllmSampler.load(models.config, models)
        assert torch.equal(before, torch.get_rng_state()), "vLLM must not move the trainer's random numbers"
        yield made


def moved(models: Models, size: float, *, only: str = "") -> None:
    """An update of the weights, as an optimiser would make it."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in models.policy.named_parameters():
            if only in name:
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def gap(engine: Any, policy: Any, tokenizer: Any) -> float:
    """Mean difference of the log-probabilities that vLLM reports and those of a model at the temperature."""
    # The last prompt fills a block of the prefix cache: kept from the old weights, it would show.
    prompts = [*prefixes_of(tokenizer), tuple(2 + (7 * k) % 97 for k in range(200))]
    asked = [GenerationRequest(prefix_ids=prompt, n=4, seed=n) for n, prompt in enumerate(prompts)]
    drawn = engine.generate(asked, SAMPLING)
    rows = [Drawn(prompt=prompt, response=c.token_ids) for prompt, row in zip(prompts, drawn, strict=True) for c in row]
    with torch.no_grad():
        found = TokenReader(policy, temperature=TEMPERATURE).read(rows).logprobs
    pairs = [
        abs(a - b)
        for own, c in zip(found.tolist(), (c for row in drawn for c in row), strict=True)
        for a, b in zip(own, c.logprobs, strict=False)
    ]
    return sum(pairs) / len(pairs)


def test_after_an_update_it_draws_with_the_new_weights(sampler: VllmSampler, checkpoint: Path) -> None:
    new, old = Models(config(checkpoint)), Models(config(checkpoint))
    own = VllmSampler(sampler._vllm, new.policy)
    assert gap(own.engine(), new.policy, new.tokenizer) < 1e-4
    for size in (1e-3, 1e-2):  # a small step shows as well as a large one
        moved(new, size)
        stale = gap(sampler._vllm, new.policy, new.tokenizer)
        fresh = own.engine()
        close, far = gap(fresh, new.policy, new.tokenizer), gap(fresh, old.policy, new.tokenizer)
        assert close < 1e-3
        assert min(stale, far) > 10 * close
        print(f"step {size:g}: gap {close:.2g}, to the old weights {far:.2g}, before the copy {stale:.2g}")


def test_adapters_are_multiplied_out(sampler: VllmSampler, checkpoint: Path) -> None:
    models = Models(config(checkpoint, lora_rank=4))
    own = VllmSampler(sampler._vllm, models.policy)
    for seed in (1, 2):
        moved(models, 0.1, only="lora_")
        stale = gap(sampler._vllm, models.policy, models.tokenizer)
        close = gap(own.engine(), models.policy, models.tokenizer)
        assert close < 1e-3 and stale > 10 * close, seed
    begun = dict(Models(config(checkpoint)).policy.named_parameters())
    plain = models.policy.get_base_model()
    for name, value in plain.state_dict().items():
        if ".lora_" not in name:
            assert torch.equal(value, begun[name.replace(".base_layer.", ".")]), "adapters stay beside the weights"


def test_what_does_not_fit_is_refused(sampler: VllmSampler, checkpoint: Path) -> None:
    engine, models = sampler._vllm, Models(config(checkpoint))
    given = dict(plain_weights(models.policy))
    stream = engine.stream(SAMPLING)
    tickets = stream.submit([GenerationRequest(prefix_ids=(5, 6, 7), n=2)])
    with pytest.raises(EngineError, match="cannot be replaced while 2 rows are decoding"):
        engine.set_weights(given.items())
    stream.cancel(tickets)
    with pytest.raises(ModelError, match=r"no new value for 1 of its weights, lm_head.weight first"):
        engine.set_weights((name, value) for name, value in given.items() if name != "lm_head.weight")
    engine.set_weights(given.items())
    assert gap(engine, models.policy, models.tokenizer) < 1e-4
    with pytest.raises(EngineError, match=r"did not take the new weights .*nonsense"):
        engine.set_weights([*given.items(), ("nonsense.weight", given["lm_head.weight"])])


def test_a_whole_run_from_the_command_line(checkpoint: Path, tmp_path: Path) -> None:
    """Two steps with learning large enough that old weights would show, on both kinds of training."""
    rows = [{"id": f"p-{n}", "prompt": f"One apple and {n} apples: ", "answer": str(n)} for n in range(6)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.py").write_text(
        "def reward(completion_ids, **more):\n"
        "    return [sum(i % 2 == 0 for i in ids) / len(ids) for ids in completion_ids]\n"
    )
    words = ["--engine", "vllm", "--vllm-eager", "--engine-rows", "32", "--init", str(checkpoint), "--prompts", "4"]
    words += ["--data", str(tmp_path / "train.jsonl"), "--rewards", f"{tmp_path / 'mine.py'}:reward", "--rate", "1e-2"]
    words += [
        "--preset",
        "grpo",
        "--change",
        "kl=null",
        "--group",
        "4",
        "--max-new-tokens",
        "12",
        "--steps",
        "2",
        "--temperature",
        "0.7",
    ]
    words += ["--repetition", "6", "--repetition-times", "3"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    for name, more in (
        ("full", []),
        ("lora", ["--lora-rank", "4", "--top-k", "40", "--change", "masks.keep_sampling=true"]),
    ):
        command = [sys.executable, "-m", "rewardkit", "rl", "train", *words, *more, "--out", str(tmp_path / name)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        steps = read_jsonl(tmp_path / name / "metrics.jsonl")
        assert [row["step"] for row in steps] == [1, 2]
        for row in steps:
            assert row["sampler/gap"] < 1e-3
            ends = [row[f"draw/{end}"] for end in ("finished", "truncated", "repetition")]
            assert sum(ends) == pytest.approx(1.0)
            # What vLLM reports at a temperature is what the trainer computes, so that every first ratio is 1.
            assert row["update/ratio_greatest"] == pytest.approx(1.0, abs=5e-3)
            assert row["update/ratio_least"] == pytest.approx(1.0, abs=5e-3)
        assert (tmp_path / name / "model/model.safetensors").exists()
