"""TRL's side: its trainers, set up as its documentation advises for the machine, one optimiser step at a time.

On a CPU: no gradient checkpointing (the memory is there, and recomputing costs a third), one micro-batch of the whole
batch (GRPO: 16 completions), bf16 only where the hardware has it, no padding-free rows (its documentation:
FlashAttention only). What its callbacks cannot see, such as collating the next batch, is not charged to it.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from side import Channel
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from work import ALPHA, GRPO_TOKENS, LR, NUM_COMPLETIONS, NUM_PROMPTS, NUM_ROWS, RANK, REWARDS, Reward, Work

GRPO_MICRO_BATCH = 16


class Turns(TrainerCallback):
    """Lets the parent decide when the next step begins."""

    def __init__(self, channel: Channel, tokens: list[float]) -> None:
        self.channel, self.tokens = channel, tokens
        self.open: AbstractContextManager[dict[str, float]] | None = None

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.channel.send(ready=True)

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.open = self.channel.step()
        self.counted = self.open.__enter__()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        assert self.open is not None
        self.counted["tokens"] = self.tokens[-1]
        self.open.__exit__(None, None, None)


def main(case: str, model_path: str, work_path: str, dtype: str) -> None:
    channel = Channel()
    method, kind = case.split("-")
    work = Work.read(Path(work_path))
    low = dtype == "bfloat16"
    frozen = (
        torch.bfloat16 if low and kind == "lora" else torch.float32
    )  # full fine-tuning: fp32 weights, bf16 autocast
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=frozen)
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    tokens: list[float] = []
    arguments: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(),
        "use_cpu": not torch.cuda.is_available(),
        "bf16": low,
        "gradient_checkpointing": False,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "max_steps": 100_000,
        "per_device_train_batch_size": NUM_ROWS,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    common: dict[str, Any] = {
        "model": model,
        "processing_class": tokenizer,
        "callbacks": [Turns(channel, tokens)],
        "peft_config": LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")
        if kind == "lora"
        else None,
    }
    trainers = {"sft": sft, "dpo": dpo} | {name: partial(grpo, reward) for name, reward in REWARDS.items()}
    trainers[method](work, arguments, common, tokens).train()


def sft(work: Work, arguments: dict[str, Any], common: dict[str, Any], tokens: list[float]) -> SFTTrainer:
    rows = [
        {"input_ids": row.prompt + row.chosen, "labels": [-100] * len(row.prompt) + row.chosen} for row in work.rows
    ]
    tokens.append(sum(len(row["input_ids"]) for row in rows))
    return SFTTrainer(args=SFTConfig(max_length=None, **arguments), train_dataset=Dataset.from_list(rows), **common)


def dpo(work: Work, arguments: dict[str, Any], common: dict[str, Any], tokens: list[float]) -> DPOTrainer:
    """Its columns are texts; that they give our tokens is checked."""
    decode = common["processing_class"].decode
    rows = [
        {"prompt": decode(row.prompt), "chosen": decode(row.chosen), "rejected": decode(row.rejected)}
        for row in work.rows
    ]
    trainer = DPOTrainer(args=DPOConfig(max_length=None, **arguments), train_dataset=Dataset.from_list(rows), **common)
    made = [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in trainer.train_dataset]
    assert made == [(row.prompt, row.chosen, row.rejected) for row in work.rows], "TRL tokenises the pairs differently"
    tokens.append(sum(2 * len(row.prompt) + len(row.chosen) + len(row.rejected) for row in work.rows))
    return trainer


def grpo(
    reward: Reward, work: Work, arguments: dict[str, Any], common: dict[str, Any], tokens: list[float]
) -> GRPOTrainer:
    decode = common["processing_class"].decode

    def rewards(completion_ids: list[list[int]], answer: list[str], **_: Any) -> list[float]:
        tokens.append(float(sum(len(ids) for ids in completion_ids)))
        return [reward(ids, decode(ids), right) for ids, right in zip(completion_ids, answer, strict=True)]

    # the logits of all 64 at once need more memory than a desk machine has; TRL still generates all 64 together
    arguments["per_device_train_batch_size"] = GRPO_MICRO_BATCH
    arguments["gradient_accumulation_steps"] = NUM_PROMPTS * NUM_COMPLETIONS // GRPO_MICRO_BATCH
    config = GRPOConfig(
        num_generations=NUM_COMPLETIONS, max_completion_length=GRPO_TOKENS, temperature=1.0, beta=0.0, **arguments
    )
    rows = [
        {"prompt": messages, "answer": answer}
        for messages, answer in zip(work.conversations, work.answers, strict=True)
    ]
    return GRPOTrainer(args=config, train_dataset=Dataset.from_list(rows), reward_funcs=rewards, **common)


if __name__ == "__main__":
    main(*sys.argv[1:])
