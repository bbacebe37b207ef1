"""Speed on a CPU against TRL, Hugging Face `generate` and vLLM: the same model, tokens and batch, in turns, in one run.

    python benchmarks/cpu.py                       # `make bench`: all cases
    python benchmarks/cpu.py sft-lora sample       # some of them
    VLLM_PYTHON=/path/to/env/bin/python python benchmarks/cpu.py sample     # with vLLM, from its own environment

A step is one optimiser step: SFT of 8 rows; DPO of 8 pairs with their reference log-probs; GRPO of 8 prompts x 8
completions of at most 32 tokens (sampling, reward, update, new weights in the sampler). For `sample` it is 64 sequences
of 48 new tokens. Tokens are those of the rows, completions or sequences; padding does not count. "of GEMM peak" divides
the FLOPs of the products that really ran by the time and by what large matrix products reached just before or just
after the step, whichever was more (median of the steps). Peak memory is the process's resident maximum, loading
included. Run it on a quiet machine: others slow both sides, but not equally.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from drive import add_arguments, benchmark


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(args.threads)}  # before torch is imported

    import torch

    from aurify.hardware import choose_dtype
    from aurify.models.loading import RANDOM_TINY, save_model
    from aurify.models.model import load_tokenizer, tiny_model
    from aurify.models.names import resolve_model

    dtype = str(choose_dtype("auto", torch.device("cpu")).dtype).removeprefix("torch.")
    with tempfile.TemporaryDirectory() as scratch:
        folder = resolve_model(args.model).source
        if folder == RANDOM_TINY:
            folder = scratch
            tiny = tiny_model()
            save_model(tiny.module, tiny.tokenizer, Path(scratch))
        benchmark(args, name="cpu", device="cpu", dtype=dtype, folder=folder, tokenizer=load_tokenizer(args.model))


if __name__ == "__main__":
    main()
