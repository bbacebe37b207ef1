"""The same on a GPU, in bf16. Random weights of a real model's shape will do: speed does not depend on what they say.

    python benchmarks/gpu.py                          # the shape of Qwen2.5-0.5B
    python benchmarks/gpu.py --shape llama-3.2-1b sft-lora
    python benchmarks/gpu.py --model folder-or-hub-id

See cpu.py for what the columns mean; here peak memory is what torch allocated on the GPU.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from drive import add_arguments, benchmark

SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
    },
    "llama-3.2-1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-0.5b", help="of a Llama with random weights")
    parser.add_argument("--model", help="a real one instead")
    args = parser.parse_args()

    import torch

    from aurify.engine.model import load_tokenizer, resolve, save_model, tiny_model

    if not torch.cuda.is_available():
        print("skipped: torch sees no GPU here")
        return
    print(torch.cuda.get_device_name())
    with tempfile.TemporaryDirectory() as scratch:
        folder = scratch
        if args.model:
            folder = resolve(args.model).base
        else:
            made = tiny_model(**SHAPES[args.shape])
            save_model(made.module.bfloat16(), made.tokenizer, Path(scratch))
        benchmark(args, name="gpu", device="cuda", dtype="bfloat16", folder=folder, tokenizer=load_tokenizer(folder))


if __name__ == "__main__":
    main()
