"""Asks llama.cpp about a GGUF file, in a process of its own: a damaged file may end the process that opens it. This
file is run as a program, reads a question from its standard input and imports nothing of Aurify."""

from __future__ import annotations

import json
import sys
import urllib.request
from typing import Any


def main() -> None:
    import xllamacpp

    asked: dict[str, Any] = json.load(sys.stdin)
    params = xllamacpp.CommonParams()
    params.model.path = asked["file"]
    params.n_ctx = max(256, *(len(probe) + 8 for probe in asked["probes"]))
    params.n_parallel, params.warmup, params.n_gpu_layers = 1, False, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = asked["threads"]
    server = xllamacpp.Server(params)
    plain = asked["probes"][0][0]
    said = [
        [run_llama_probe(server, probe[: end + 1], asked["num"], plain) for end in range(len(probe))]
        for probe in asked["probes"]
    ]
    tokens = [tokenize_for_llama(server.listening_address, text) for text in asked["texts"]]
    print(json.dumps({"said": said, "tokens": tokens}))


def run_llama_probe(server: Any, tokens: list[int], num: int, plain: int) -> list[tuple[int, float]]:
    """The likeliest next tokens and their log-probs. The server gives none with a token that is a part of a character,
    so it has to choose a plain one; what it says of the others does not depend on that."""
    answer = server.handle_completions({
        "prompt": tokens, "n_predict": 1, "n_probs": num, "temperature": 0.0, "logit_bias": [[plain, 1000.0]],
    })  # fmt: skip
    likely = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return [(token["id"], token["logprob"]) for token in likely]


def tokenize_for_llama(address: str, text: str) -> list[int]:
    body = json.dumps({"content": text, "add_special": False, "parse_special": True}).encode()
    request = urllib.request.Request(f"{address}/tokenize", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        found: list[int] = json.load(answer)["tokens"]
    return found


if __name__ == "__main__":
    main()
