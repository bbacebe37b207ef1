"""A server that answers in the form of vLLM 0.32, from a real tiny model of the folder it is given: for tests of the
client where vLLM is not installed. FAKE_FAULTS, JSON: {"flaky": n} answers n requests after the first with 503,
{"drop": name} leaves weights out whose names contain it, {"awake": 1} never sleeps, {"mode": ...} is its
--logprobs-mode, {"seconds": s} is what a token takes."""

from __future__ import annotations

import argparse
import json
import os
import select
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from tokenizers import Tokenizer

FAULTS = json.loads(os.environ.get("FAKE_FAULTS", "{}"))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("model", "host", "dtype", "logprobs-mode"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("port", "max-model-len", "max-num-seqs", "max-loras", "max-lora-rank"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--enable-lora", action="store_true")
    return parser.parse_args()


def read_tensors(folder: Path, pattern: str = "*.safetensors") -> dict[str, Any]:
    """float32 arrays; bfloat16 is the upper half of float32."""
    found = {}
    for file in sorted(folder.glob(pattern)):
        content = file.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        for name, entry in json.loads(content[8:start]).items():
            if name == "__metadata__":
                continue
            low, high = (start + offset for offset in entry["data_offsets"])
            if entry["dtype"] == "BF16":
                wide = np.frombuffer(content[low:high], np.uint16).astype(np.uint32) << 16
                value = wide.view(np.float32)
            else:
                value = np.frombuffer(content[low:high], {"F32": np.float32, "F16": np.float16}[entry["dtype"]])
            found[name] = value.reshape(entry["shape"]).astype(np.float32)
    return found


def normalise(x: Any, weight: Any) -> Any:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * weight


class Model:
    """A Llama in numpy: a server has to start in a moment."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, folder = args, Path(args.model)
        self.config = json.loads((folder / "config.json").read_text())
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.base = read_tensors(folder)
        self.weights = dict(self.base)
        self.adapters: dict[str, Path] = {}
        self.version = "default"
        self.stats: dict[str, Any] = {
            "requests": 0,
            "aborted": 0,
            "resets": 0,
            "pushes": 0,
            "prompts": [],
            "sleeps": [],
        }
        self.asleep: set[str] = set()
        self.stats["pid"] = os.getpid()

    def logits(self, tokens: list[int]) -> Any:
        """[vocabulary] after the last token"""
        weights, heads, groups = self.weights, self.config["num_attention_heads"], self.config["num_key_value_heads"]
        x, length = weights["model.embed_tokens.weight"][tokens], len(tokens)
        size = x.shape[1] // heads
        angles = np.outer(np.arange(length), 10000.0 ** (-np.arange(0, size, 2) / size))
        cos, sin = (np.tile(part, 2)[:, None] for part in (np.cos(angles), np.sin(angles)))

        def rotate(y: Any) -> Any:  # [tokens, heads, size]
            half = np.concatenate([-y[..., size // 2 :], y[..., : size // 2]], -1)
            return y * cos + half * sin

        for number in range(self.config["num_hidden_layers"]):

            def product(y: Any, name: str, number: int = number) -> Any:
                return y @ weights[f"model.layers.{number}.{name}.weight"].T

            y = normalise(x, weights[f"model.layers.{number}.input_layernorm.weight"])
            q = rotate(product(y, "self_attn.q_proj").reshape(length, heads, size))
            k = rotate(product(y, "self_attn.k_proj").reshape(length, groups, size)).repeat(heads // groups, 1)
            v = product(y, "self_attn.v_proj").reshape(length, groups, size).repeat(heads // groups, 1)
            scores = np.einsum("qhd,khd->hqk", q, k) / size**0.5
            scores = np.where(np.tril(np.ones((length, length), bool)), scores, -np.inf)
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            mixed = np.einsum("hqk,khd->qhd", scores / scores.sum(-1, keepdims=True), v)
            x = x + product(mixed.reshape(length, -1), "self_attn.o_proj")
            y = normalise(x, weights[f"model.layers.{number}.post_attention_layernorm.weight"])
            gate = product(y, "mlp.gate_proj")
            x = x + product(gate / (1 + np.exp(-gate)) * product(y, "mlp.up_proj"), "mlp.down_proj")
        head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
        return normalise(x[-1], weights["model.norm.weight"]) @ head.T

    def load_adapter(self, folder: Path) -> None:
        config = json.loads((folder / "adapter_config.json").read_text())
        tensors, weights = read_tensors(folder, "adapter_model.safetensors"), dict(self.base)
        for key, a in tensors.items():
            name = key.removeprefix("base_model.model.").replace("lora_A.weight", "weight")
            if key.endswith("lora_A.weight") and FAULTS.get("drop", "-") not in name:
                scale = config["lora_alpha"] / config["r"]
                weights[name] = weights[name] + scale * tensors[key.replace("lora_A", "lora_B")] @ a
        self.weights = weights

    def reload(self, folder: Path) -> None:
        read = read_tensors(folder)
        assert read, f"no weights in {folder}"
        self.weights = self.weights | {k: v for k, v in read.items() if FAULTS.get("drop", "-") not in k}

    def generate(self, body: dict[str, Any], gone: Any) -> dict[str, Any] | None:
        generator = np.random.default_rng(body["seed"])
        tokens: list[int] = []
        logprobs: list[float] = []
        finish = "length"
        while len(tokens) < body["max_tokens"]:
            time.sleep(FAULTS.get("seconds", 0.0))
            if gone():
                return None
            logits = self.logits([*body["prompt"], *tokens]).astype(np.float64) / (body["temperature"] or 1.0)
            if body["top_k"] > 0:
                logits[logits < np.sort(logits)[-body["top_k"]]] = -np.inf
            chances = np.exp(logits - logits.max())
            chances /= chances.sum()
            token = int(generator.choice(len(chances), p=chances) if body["temperature"] else chances.argmax())
            tokens.append(token)
            logprobs.append(float(np.log(chances[token])))
            text = self.tokenizer.decode(tokens, skip_special_tokens=False)
            if token in body["stop_token_ids"] or any(stop in text for stop in body["stop"]):
                finish = "stop"
                break
        choice = {"token_ids": tokens, "logprobs": {"token_logprobs": logprobs}, "finish_reason": finish}
        return {"choices": [choice | {"prompt_token_ids": body["prompt"]}]}


def answer(model: Model, address: str, body: dict[str, Any], gone: Any) -> tuple[int, Any]:
    path, _, query_text = address.partition("?")
    query = dict(parse_qsl(query_text))
    if "kv_cache" in model.asleep and path == "/v1/completions":
        return 500, {"error": {"message": "asked in its sleep"}}
    if "weights" in model.asleep and path in ("/v1/load_lora_adapter", "/collective_rpc"):
        return 500, {"error": {"message": "weights written in its sleep"}}
    if path == "/health":
        return 200, None
    if path == "/stats":
        return 200, model.stats
    if path == "/weight_info":
        return 200, {"weight_version": model.version}
    if path == "/server_info":
        mode = FAULTS.get("mode", model.args.logprobs_mode)
        return 200, {
            "vllm_config": {"model_config": {"logprobs_mode": mode, "max_model_len": model.args.max_model_len}}
        }
    if path == "/update_weight_version":
        model.version = body["new_version"]
        return 200, {"success": True}
    if path == "/is_sleeping":
        return 200, {"is_sleeping": bool(model.asleep)}
    if path.startswith("/sleep"):
        level = int(query["level"])
        model.asleep = {"weights", "kv_cache"} if "awake" not in FAULTS else set()
        model.weights = {name: 0 * value for name, value in model.weights.items()} if level == 2 else model.weights
        model.stats["sleeps"].append(level)
        return 200, {"status": "sleeping"}
    if path.startswith("/wake_up"):
        model.asleep -= {query["tags"]} if query else {"weights", "kv_cache"}
        return 200, {"status": "awake"}
    if path == "/reset_prefix_cache":
        model.stats["resets"] += 1
        return 200, {"success": True}
    if path == "/v1/load_lora_adapter" and model.args.enable_lora:
        assert body["load_inplace"] and body["lora_path"] not in map(str, model.adapters.values())
        model.load_adapter(Path(body["lora_path"]))
        model.adapters[body["lora_name"]] = Path(body["lora_path"])
        model.stats["pushes"] += 1
        return 200, None
    if path == "/collective_rpc":
        assert body["method"] == "reload_weights"
        model.reload(Path(body["kwargs"]["weights_path"]))
        model.stats["pushes"] += 1
        return 200, {"results": [None]}
    if path == "/v1/completions":
        if body.get("model") not in (None, *model.adapters):
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        model.stats["requests"] += 1
        model.stats["prompts"].append(body["prompt"])
        if FAULTS.get("flaky", 0) > 0 and model.stats["requests"] > 1:
            FAULTS["flaky"] -= 1
            return 503, {"error": "busy"}
        if len(body["prompt"]) + body["max_tokens"] > model.args.max_model_len:
            return 400, {"error": {"message": "maximum context length"}}
        made = model.generate(body, gone)
        if made is None:
            model.stats["aborted"] += 1
        return 200, made
    return 404, {"detail": "Not Found"}


def serve(args: argparse.Namespace) -> None:
    model = Model(args)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(length) or b"{}")
            try:
                status, value = answer(model, self.path, body, self.gone)
            except Exception as error:
                status, value = 500, {"error": {"message": f"{type(error).__name__}: {error}"}}
            text = b"" if value is None else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(text)))
            if text:
                self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = handle_any

        def gone(self) -> bool:
            ready, _, _ = select.select([self.connection], [], [], 0)
            return bool(ready) and not self.connection.recv(1, 2)  # MSG_PEEK

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 256

    Server((args.host, args.port), Handler).serve_forever()


if __name__ == "__main__":
    serve(parse())
