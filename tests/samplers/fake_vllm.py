"""A server that answers in the form of vLLM 0.32, from a real tiny model of the folder it is given: for tests of the
client where vLLM is not installed. FAKE_FAULTS, JSON: {"flaky": n} answers n requests with 503, {"drop": name} leaves
weights out whose names contain it, {"mode": ...} is its --logprobs-mode, {"seconds": s} is what a token takes."""

from __future__ import annotations

import argparse
import json
import os
import select
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

torch.set_num_threads(1)
FAULTS = json.loads(os.environ.get("FAKE_FAULTS", "{}"))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("model", "host", "dtype", "logprobs-mode"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("port", "max-model-len", "max-num-seqs", "max-loras", "max-lora-rank"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--enable-lora", action="store_true")
    return parser.parse_args()


class Model:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.lock = args, threading.Lock()
        self.module = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype)).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(args.model)
        self.base = {name: value.clone() for name, value in self.module.state_dict().items()}
        self.adapters: dict[str, Path] = {}
        self.version = "default"
        self.stats = {"requests": 0, "aborted": 0, "resets": 0, "pushes": 0, "pid": os.getpid()}
        self.stats["prompts"] = []  # type: ignore[assignment]

    @torch.no_grad()
    def load_adapter(self, folder: Path) -> None:
        config = json.loads((folder / "adapter_config.json").read_text())
        tensors = load_file(folder / "adapter_model.safetensors")
        state = {name: value.clone() for name, value in self.base.items()}
        for key, a in tensors.items():
            if key.endswith("lora_A.weight"):
                name = key.removeprefix("base_model.model.").replace("lora_A.weight", "weight")
                b, scale = tensors[key.replace("lora_A", "lora_B")], config["lora_alpha"] / config["r"]
                if FAULTS.get("drop", "-") not in name:
                    state[name] += (scale * (b.float() @ a.float())).to(state[name].dtype)
        self.module.load_state_dict(state)

    @torch.no_grad()
    def reload(self, folder: Path) -> None:
        files = sorted(folder.glob("*.safetensors"))
        assert files, f"no weights in {folder}"
        parameters = dict(self.module.named_parameters())
        for file in files:
            for name, value in load_file(file).items():
                if FAULTS.get("drop", "-") not in name:
                    parameters[name].copy_(value)

    @torch.no_grad()
    def generate(self, body: dict[str, Any], gone: Any) -> dict[str, Any] | None:
        generator = torch.Generator().manual_seed(body["seed"])
        tokens: list[int] = []
        logprobs: list[float] = []
        finish = "length"
        while len(tokens) < body["max_tokens"]:
            time.sleep(FAULTS.get("seconds", 0.0))
            if gone():
                return None
            with self.lock:
                logits = self.module(torch.tensor([[*body["prompt"], *tokens]])).logits[0, -1].float()
            if body["temperature"] > 0:
                logits = logits / body["temperature"]
            if body["top_k"] > 0:
                logits[logits < logits.topk(body["top_k"]).values[-1]] = -torch.inf
            chances = logits.log_softmax(0)
            token = int(chances.exp().multinomial(1, generator=generator) if body["temperature"] else chances.argmax())
            tokens.append(token)
            logprobs.append(float(chances[token]))
            text = self.tokenizer.decode(tokens)
            if token in body["stop_token_ids"] or any(stop in text for stop in body["stop"]):
                finish = "stop"
                break
        choice = {"token_ids": tokens, "logprobs": {"token_logprobs": logprobs}, "finish_reason": finish}
        return {"choices": [choice | {"prompt_token_ids": body["prompt"]}]}


def answer(model: Model, path: str, body: dict[str, Any], gone: Any) -> tuple[int, Any]:
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
        model.stats["prompts"].append(body["prompt"])  # type: ignore[attr-defined]
        if FAULTS.get("flaky", 0) > 0:
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
                status, value = answer(model, self.path.partition("?")[0], body, self.gone)
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
