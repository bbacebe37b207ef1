"""What rounding costs an adapter: LoRA on a bf16 base, ours and peft's, against fp32, on the same batch.

    python benchmarks/lora_bf16.py --out docs/data/lora_bf16.json

SFT on four rows of GSM8K (or rows of the same lengths where the file is not there) for 8 steps, and DPO on the four
pairs with another question's answer for 6. Prints the loss, and the margin, before each step.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from work import Row, make_work

from aurify.algorithms.dpo import DPO
from aurify.algorithms.sft import SFT
from aurify.engine.engine import Engine
from aurify.engine.lora import LoraConfig
from aurify.models.model import ModelConfig, load_model
from aurify.types import Datum

NUM_ROWS, LR, LORA = 4, 2e-4, LoraConfig(rank=16, alpha=32.0)


def datum(prompt: list[int], answer: list[int], unit: int = -1) -> Datum:
    return Datum(prompt + answer, [0.0] * len(prompt) + [1.0] * len(answer), unit=unit)


def train_sft(name: str, dtype: str, rows: list[Row], steps: int) -> list[float]:
    engine = Engine(load_model(ModelConfig(name, dtype=dtype)), lora=LORA)  # type: ignore[arg-type]
    losses = []
    for _ in range(steps):
        losses.append(engine.forward_backward([datum(row.prompt, row.chosen) for row in rows], SFT())["loss"])
        engine.optim_step(LR)
    engine.close()
    return losses


def train_dpo(name: str, dtype: str, rows: list[Row], steps: int) -> list[float]:
    engine = Engine(load_model(ModelConfig(name, dtype=dtype)), lora=LORA)  # type: ignore[arg-type]
    data = [datum(row.prompt, answer, k) for k, row in enumerate(rows) for answer in (row.chosen, row.rejected)]
    known = engine.logprobs(data, reference=True)
    data = [replace(each, ref_logprobs=values) for each, values in zip(data, known, strict=True)]
    margins = []
    for _ in range(steps):
        margins.append(engine.forward_backward(data, DPO())["reward/margin"])
        engine.optim_step(LR)
    engine.close()
    return margins


def train_peft(name: str, dtype: str, rows: list[Row], steps: int) -> list[float]:
    """SFT, with the adapter that ours begins with."""
    import peft

    start = Engine(load_model(ModelConfig(name, dtype=dtype)), lora=LORA).adapter  # type: ignore[arg-type]
    assert start is not None
    module: Any = load_model(ModelConfig(name, dtype=dtype)).module  # type: ignore[arg-type]
    targets = sorted({layer.rpartition(".")[2] for layer in start.layers})
    module = peft.get_peft_model(module, peft.LoraConfig(r=LORA.rank, lora_alpha=LORA.alpha, target_modules=targets))
    key = "base_model.model.{}.lora_A.default.weight"
    weights = {key.format(layer): adapted.lora_A.detach() for layer, adapted in start.layers.items()}
    assert not module.load_state_dict(weights, strict=False).unexpected_keys
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    adamw = torch.optim.AdamW(parameters, lr=LR, weight_decay=0.0)
    tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(r.prompt + r.chosen) for r in rows], batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(r.prompt + r.chosen)) for r in rows], batch_first=True)
    trained = mask.clone()
    for k, row in enumerate(rows):
        trained[k, : len(row.prompt)] = 0
    losses = []
    for _ in range(steps):
        logprobs = module(input_ids=tokens, attention_mask=mask.long()).logits[:, :-1].float().log_softmax(-1)
        chosen = logprobs.gather(2, tokens[:, 1:, None]).squeeze(2)
        loss = -(chosen * trained[:, 1:]).sum() / trained.sum()
        losses.append(loss.item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        adamw.step()
        adamw.zero_grad()
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--sft-steps", type=int, default=8)
    parser.add_argument("--dpo-steps", type=int, default=6)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = make_work(load_model(ModelConfig(args.model)).tokenizer).rows[:NUM_ROWS]
    found: dict[str, list[float]] = {}
    for dtype in ("float32", "bfloat16"):
        found[f"sft {dtype}"] = train_sft(args.model, dtype, rows, args.sft_steps)
        found[f"dpo margin {dtype}"] = train_dpo(args.model, dtype, rows, args.dpo_steps)
    found["sft peft bfloat16"] = train_peft(args.model, "bfloat16", rows, args.sft_steps)
    for name, values in found.items():
        print(f"{name:22s}", " ".join(f"{value:.3f}" for value in values), flush=True)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"model": args.model, "lr": LR, "rank": LORA.rank, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
