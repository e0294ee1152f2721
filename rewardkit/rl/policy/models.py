"""The models of a run: the policy that is trained, the reference it is held to, the critic that values its states.

The reference is the policy as it began: with LoRA the same weights with adapters switched off, without it a frozen
copy, made only where the table reads it. A teacher is another frozen model with the very same tokens. A critic is a
model of its own, begun from the same checkpoint, or a head on the policy's trunk; its head begins at 0, so that first
advantages are rewards alone. An implicit reward model is one more copy of the first policy, learned beside it
(`credit/implicit.py`) against a frozen one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from prm.fit_config import FitConfig
from prm.lora import merged, with_adapters
from rewardkit.offline.starting import load_policy
from rewardkit.rl.config import RlConfig
from rewardkit.rl.policy.reader import Against, Drawn, TokenReader
from rewardkit.rl.policy.routing import routers_for
from rewardkit.rl.policy.sharding import Shards, gathered
from verifiers.checkpoints import load_tokenizer
from verifiers.errors import ModelError


class Models:
    """Policy, reference and critic, and what is optimised of them."""

    def __init__(self, config: RlConfig, *, device: torch.device | str = "cpu") -> None:
        self.config = config
        self.tokenizer = load_tokenizer(config.init)
        torch.manual_seed(config.seed)
        self._lora = FitConfig(
            init=config.init,
            lora_rank=config.lora_rank,
            lora_alpha=config.lora_alpha,
            lora_targets=config.lora_targets,
        )
        self.policy = with_adapters(load_language_model(config.init), self._lora, "CAUSAL_LM").to(device)
        table = config.table
        self.reader = TokenReader(
            self.policy,
            temperature=config.temperature,
            row_tokens=config.row_tokens,
            routers=routers_for(self.policy) if table.masks.keep_routing else None,
        )
        self.shards: Shards | None = None
        if config.shard:
            self.shards = Shards(self.reader.plain, list(self.reader.layers()))
            self.reader.enter = self.shards.enter
        self.reference: TokenReader | None = None
        if table.kl.target == "ref" and (not config.lora_rank or table.kl.estimator == "full"):
            self.reference = self._frozen(config.init, device)
        if config.teacher is not None:
            refuse_other_tokens(self.tokenizer, config.init, load_tokenizer(config.teacher), config.teacher)
            self.reference = self._frozen(config.teacher, device)
            self._check_width()
        self.critic: TokenReader | None = None
        self.value_head: torch.nn.Linear | None = None
        if table.critic is not None:
            self.critic = self.reader
            if config.value_model == "own":
                own = load_language_model(config.init).to(device)
                self.critic = TokenReader(own, row_tokens=config.row_tokens)
            self.value_head = torch.nn.Linear(self.policy.config.hidden_size, 1).to(device)
            torch.nn.init.zeros_(self.value_head.weight)
            torch.nn.init.zeros_(self.value_head.bias)

        self.implicit: TokenReader | None = None
        self.implicit_reference: TokenReader | None = None
        if table.implicit is not None:
            phi = load_language_model(config.init).to(device)
            frozen = self.reference.model if table.kl.target == "ref" and self.reference else None
            self.implicit = TokenReader(phi, row_tokens=config.row_tokens)
            frozen = frozen or load_language_model(config.init).to(device).eval().requires_grad_(False)
            self.implicit_reference = TokenReader(frozen, row_tokens=config.row_tokens)

    @property
    def parts(self) -> dict[str, torch.nn.Module]:
        """What a checkpoint holds, by name."""
        found: dict[str, torch.nn.Module] = {"policy": self.policy}
        if self.critic is not None and self.critic is not self.reader:
            found["critic"] = self.critic.model
        if self.value_head is not None:
            found["value_head"] = self.value_head
        if self.implicit is not None:
            found["implicit"] = self.implicit.model
        return found

    def trained(self) -> list[torch.nn.Parameter]:
        """Everything that the policy's optimiser moves, each once; the implicit reward model has its own."""
        parts = [part for name, part in self.parts.items() if name != "implicit"]
        own = [p for part in parts for p in part.parameters() if p.requires_grad]
        return list({id(p): p for p in own}.values())

    def whole(self) -> AbstractContextManager[None]:
        """In here every process has all weights, and reads and draws by itself; outside, updates go on together."""
        return contextlib.nullcontext() if self.shards is None else self.shards.whole()

    def passes(self, own: int) -> int:
        """Passes over the policy that this process must take where it has so many: as many as any other, if cut."""
        return own if self.shards is None else self.shards.most(own)

    def idle_pass(self, row: Drawn, *, layer: int | None = None) -> None:
        """A forward and backward pass that changes nothing, beside one of another process over the same layers."""
        with self.autocast():
            nothing = 0.0 * self.reader.read([row], layer=layer).logprobs.sum()
        nothing.backward()  # type: ignore[no-untyped-call]

    def _frozen(self, path: str, device: torch.device | str) -> TokenReader:
        model = load_language_model(path).to(device).eval().requires_grad_(False)
        return TokenReader(model, temperature=self.config.temperature, row_tokens=self.config.row_tokens)

    def _check_width(self) -> None:
        # Heads may be padded to different widths; what the tokenizer can give must be inside both.
        assert self.reference is not None
        width = self.reference.head.weight.shape[0]
        if width < len(self.tokenizer):
            raise ModelError(
                f"the teacher {self.config.teacher} knows {width} token ids, and the policy's tokenizer has "
                f"{len(self.tokenizer)}; take a teacher that was trained with this tokenizer"
            )

    def autocast(self) -> torch.autocast:
        """Computes in bfloat16 where the run asks for it; weights and losses stay float32."""
        return torch.autocast(self.policy.device.type, dtype=torch.bfloat16, enabled=self.config.bf16)

    @torch.no_grad()
    def reference_logprobs(self, rows: Sequence[Drawn]) -> torch.Tensor:
        """Log-probabilities under the policy as it began, or the teacher where there is one. Shape (B, T)."""
        if self.reference is not None:
            return self.reference.read(rows).logprobs
        with self._adapters_off():
            # The reference takes its own experts, whichever way it is held.
            return self.reader.read([replace(row, routes=None) for row in rows]).logprobs

    def against(self) -> Against | None:
        """What a KL over the whole vocabulary is taken to; None where the table has none."""
        kl = self.config.table.kl
        if kl.estimator != "full":
            return None
        assert self.reference is not None
        return Against(reader=self.reference, mix=1.0 if kl.mix is None else kl.mix)

    @contextlib.contextmanager
    def _adapters_off(self) -> Iterator[None]:
        if self.config.lora_rank:
            with self.policy.disable_adapter():
                yield
        else:
            yield

    def save(self, folder: str | Path, *, write: bool = True) -> None:
        """The policy as a plain checkpoint; adapters are multiplied out, so this ends a run.

        All processes call it, and one of them is to `write`.
        """
        policy = self.policy
        whole = None if self.shards is None else gathered(policy.state_dict())
        if not write:
            return
        if whole is not None:
            policy = with_adapters(load_language_model(self.config.init), self._lora, "CAUSAL_LM")
            policy.load_state_dict(whole)
        merged(policy, self._lora).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def load_language_model(path: str) -> Any:
    """A causal language model in float32, dropout off. Raises ModelError, MissingFileError."""
    model, _ = load_policy(path)
    # Dropout would make the trainer's log-probabilities others than the sampler's.
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.eval()


def refuse_other_tokens(
    own: Any, own_path: str, other: Any, other_path: str, *, roles: tuple[str, str] = ("policy", "teacher")
) -> None:
    """Raise ModelError unless both tokenizers give every token the same id; `roles` are what the models are called."""
    ours, theirs = own.get_vocab(), other.get_vocab()
    if ours == theirs:
        return
    differing = sorted((token for token in {*ours, *theirs} if ours.get(token) != theirs.get(token)), key=repr)
    raise ModelError(
        f"the {roles[1]} {other_path} has another tokenizer than the {roles[0]} {own_path}: {len(differing)} tokens "
        f"differ, such as {differing[0]!r}; take a {roles[1]} with the same tokenizer"
    )
