"""Hugging Face `generate`'s side: a left-padded batch, plain sampling."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from side import Channel, serve
from transformers import AutoModelForCausalLM, AutoTokenizer
from work import SAMPLE_TOKENS, Work


def main(_case: str, model_path: str, work_path: str, dtype: str) -> None:
    channel = Channel()
    work = Work.read(Path(work_path))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=getattr(torch, dtype)).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_path, padding_side="left")
    batch = tokenizer.pad({"input_ids": work.samples}, return_tensors="pt").to(device)
    model.generation_config.eos_token_id = None  # every sequence gets all its tokens

    def step() -> dict[str, float]:
        output = model.generate(
            **batch, max_new_tokens=SAMPLE_TOKENS, do_sample=True, temperature=1.0, top_k=0, top_p=1.0
        )
        num_new = output.shape[1] - batch["input_ids"].shape[1]
        return {"tokens": float(output.shape[0] * num_new)}

    serve(channel, step)


if __name__ == "__main__":
    main(*sys.argv[1:])
