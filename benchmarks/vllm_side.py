"""vLLM's side, in its own environment (`VLLM_PYTHON`): the offline engine, one request a prompt."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from side import Channel, serve
from work import SAMPLE_TOKENS, Work


def main(_case: str, model_path: str, work_path: str, dtype: str) -> None:
    channel = Channel()
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{int(os.environ['OMP_NUM_THREADS']) - 1}")
    from vllm import LLM, SamplingParams

    work = Work.read(Path(work_path))
    engine = LLM(model=model_path, dtype=dtype, max_model_len=1024, max_num_seqs=len(work.samples))
    params = SamplingParams(temperature=1.0, max_tokens=SAMPLE_TOKENS, ignore_eos=True)
    prompts = [{"prompt_token_ids": prompt} for prompt in work.samples]

    def step() -> dict[str, float]:
        outputs = engine.generate(prompts, params, use_tqdm=False)
        return {"tokens": float(sum(len(output.outputs[0].token_ids) for output in outputs))}

    serve(channel, step)


if __name__ == "__main__":
    main(*sys.argv[1:])
