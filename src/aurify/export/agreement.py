"""Whether an export says what the trained model says: the log-probs of the likely tokens, along texts that the trained
model goes on with. Both are computed in fp32 on a CPU, so that what differs is the export and not the arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aurify.engine.adapter_files import read_adapter
from aurify.engine.merge import merge_with_peft
from aurify.engine.restore import restore_adapter
from aurify.errors import UserError
from aurify.models.model import LoadedModel, load_model
from aurify.renderer import Renderer

TEXTS = (
    "The capital of France is",
    "def add(a, b):\n    return",
    "17 + 25 = 42. 1,234.5 - 3 =",
    "Ärger, 漢字 and an émigré's naïve 🙂 at 10:30:",
)
QUESTIONS = ("What is 3 + 4?", "Name two colours of the sky.")
CONTINUED = 8  # tokens that the trained model adds to each
LIKELY = 50  # tokens that are compared at each position
# The root mean square difference of their log-probs, as a share of the spread of these log-probs. Measured with
# SmolLM2-135M: f32 0.1%, f16 0.2%, bf16 0.8%, q8_0 5.5% (its weights alone 3.4%; llama.cpp rounds activations as well),
# q4_k_m 20%.
TOLERANCES = {
    "the same weights": 1e-4,
    "torch.float32": 1e-3,
    "torch.bfloat16": 0.03,
    "torch.float16": 0.03,
    "f32": 0.01,
    "f16": 0.01,
    "bf16": 0.03,
    "q8_0": 0.1,
    "q4_k_m": 0.5,
}
Said = Sequence[dict[int, float]]  # position -> log-probs of the likely next tokens


@dataclass(frozen=True)
class Agreement:
    kind: str
    difference: float  # nats
    spread: float
    same_choice: float  # share of positions at which both find the same token the likeliest
    num: int  # positions

    @property
    def share(self) -> float:
        return self.difference / self.spread if self.spread else math.inf

    def __str__(self) -> str:
        return (
            f"log-probs differ by {self.difference:.2g} nats ({self.share:.2%} of their spread; allowed for "
            f"{self.kind}: {TOLERANCES[self.kind]:.2%}), same likeliest token at {self.same_choice:.1%} of "
            f"{self.num} positions"
        )


@dataclass(frozen=True)
class Trained:
    """What the trained model says, its own adapter not merged. An export loads its weights again."""

    base: str
    tokenizer: Any
    vocabulary: int
    prompts: dict[str, list[int]]  # text -> tokens
    probes: list[list[int]]  # prompts with what the model adds
    logprobs: list[Tensor]  # a probe each: [positions, vocabulary]

    def compare(self, said: Sequence[Said], kind: str) -> Agreement:
        """said: by the export, a probe each. Raises where it is too far from the trained model."""
        own: list[float] = []
        other: list[float] = []
        same: list[bool] = []
        for logprobs, positions in zip(self.logprobs, said, strict=True):
            for row, likely in zip(logprobs, positions, strict=True):
                own += row[list(likely)].tolist()
                other += likely.values()
                same.append(int(row.argmax()) == max(likely, key=lambda token: likely[token]))
        ours, theirs = torch.tensor(own, dtype=torch.float64), torch.tensor(other, dtype=torch.float64)
        difference = float((ours - theirs).pow(2).mean().sqrt())
        found = Agreement(kind, difference, float(ours.std()), sum(same) / len(same), len(same))
        if not found.share <= TOLERANCES[kind]:  # also refuses what is no number
            raise UserError(
                f"the export is refused, and nothing of it is left: loaded again, its {found}. The files were damaged "
                "while they were written, or the format does not hold this model; export it again, or in another format"
            )
        return found

    def check_tokens(self, read: Mapping[str, Sequence[int]], reader: str) -> None:
        for text, tokens in read.items():
            if list(tokens) != self.prompts.get(text):
                raise UserError(
                    f"the export is refused, and nothing of it is left: {reader} reads {text!r} as the tokens "
                    f"{list(tokens)}, the trained model as {self.prompts.get(text, 'another text')}"
                )

    def texts(self) -> list[str]:
        """What any reader of texts should read as these tokens."""
        encode = self.tokenizer.encode
        return [text for text, tokens in self.prompts.items() if encode(text, add_special_tokens=False) == tokens]


def load_model_to_export(name: str) -> Trained:
    loaded = load_model(name, dtype="float32", device="cpu")
    if loaded.adapter is not None:
        try:
            restore_adapter(loaded.module, read_adapter(loaded.adapter), 0.0, None)
        except UserError as reason:
            if "; merge it" not in str(reason):
                raise
            loaded = load_model(name, dtype="float32", device="cpu")
            assert loaded.adapter is not None
            loaded.module = merge_with_peft(loaded.module, loaded.adapter)
    prompts = write_probe_prompts(loaded.tokenizer)
    probes = [continue_probe_prompt(loaded.module, prompt) for prompt in prompts.values()]
    logprobs = [compute_export_log_probs(loaded.module, probe) for probe in probes]
    return Trained(loaded.name, loaded.tokenizer, loaded.vocabulary, prompts, probes, logprobs)


def write_probe_prompts(tokenizer: Any) -> dict[str, list[int]]:
    prompts = {text: tokenizer.encode(text, add_special_tokens=False) for text in TEXTS}
    try:
        renderer = Renderer(tokenizer)
        chats = [renderer.prompt([{"role": "user", "content": question}]) for question in QUESTIONS]
    except UserError:  # a template that takes no lone question; an adapter on it can be merged all the same
        return prompts
    return prompts | {tokenizer.decode(tokens): tokens for tokens in chats}


def continue_probe_prompt(module: Any, tokens: list[int]) -> list[int]:
    for _ in range(CONTINUED):
        tokens = [*tokens, int(compute_export_log_probs(module, tokens)[-1].argmax())]
    return tokens


@torch.no_grad()
def compute_export_log_probs(module: Any, tokens: list[int]) -> Tensor:
    """[positions, vocabulary]: log-probs of the next token."""
    logits: Tensor = module(torch.tensor([tokens])).logits[0]
    return logits.float().log_softmax(-1)


def check_exported_folder(trained: Trained, folder: Path, kind: str) -> Agreement:
    """Loads an exported folder as anybody would, and compares."""
    again = load_exported(str(folder))
    trained.check_tokens(write_probe_prompts(again.tokenizer), "the exported tokenizer")
    said = []
    for probe in trained.probes:
        values, tokens = compute_export_log_probs(again.module, probe).topk(min(LIKELY, again.vocabulary))
        said.append([dict(zip(t.tolist(), v.tolist(), strict=True)) for t, v in zip(tokens, values, strict=True)])
    return trained.compare(said, kind)


def load_exported(folder: str) -> LoadedModel:
    try:
        loaded = load_model(folder, dtype="float32", device="cpu")
        if loaded.adapter is not None:
            restore_adapter(loaded.module, read_adapter(loaded.adapter), 0.0, None)
        return loaded
    except UserError as error:
        raise UserError(
            f"the export is refused, and nothing of it is left: it cannot be loaded again: {error}"
        ) from None
