"""`aurify serve-rollouts`: its server takes a trainer's weights and gives answers that can be trained on."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time

import httpx
from models import ATTENTIVE, random_engine
from typer.testing import CliRunner
from vllm_stand_in import write_stand_in

from aurify.cli.main import app
from aurify.engine.lora import LoraConfig
from aurify.models.loading import save_model
from aurify.samplers.open import SamplerOptions, open_sampler
from aurify.types import SamplingParams


def test_a_trainer_joins_it(tmp_path):
    engine = random_engine(lora=LoraConfig(rank=4), **ATTENTIVE)
    plain = random_engine(**ATTENTIVE)
    save_model(plain.module, plain.tokenizer, tmp_path / "base")
    python = write_stand_in(tmp_path / "python", "--dtype float32")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        "serve-rollouts",
        str(tmp_path / "base"),
        "--port",
        str(port),
        "--max-context",
        "128",
        "--lora-rank",
        "4",
    ]
    code = f"from aurify.cli.main import app; app({[*command, '--python', python]})"
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        told = server.stdout.readline()
        assert told.startswith("sampler: {kind: vllm_server, options: {urls: '" + url)
        until = time.monotonic() + 300
        while time.monotonic() < until:
            try:
                httpx.get(f"{url}/health", trust_env=False)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        sampler = open_sampler(
            SamplerOptions(kind="vllm_server", max_context=128, options={"urls": url, "folder": str(tmp_path)}), engine
        )

        async def ask():
            made = await sampler.sample(list(range(40, 60)), SamplingParams(max_tokens=6, seed=1), 2)
            await sampler.close()
            return made

        assert [len(one.tokens) for one in asyncio.run(ask())] == [6, 6]
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        server.stdout.close()


def test_options_go_on_to_vllm_and_nothing_starts_without_it(tmp_path):
    plain = random_engine()
    save_model(plain.module, plain.tokenizer, tmp_path / "base")
    shown = CliRunner().invoke(
        app, ["serve-rollouts", str(tmp_path / "base"), "--show", "--lora-rank", "20", "--", "--quantization", "fp8"]
    )
    assert shown.exit_code == 0
    for part in (
        "VLLM_SERVER_DEV_MODE=1",
        "--logprobs-mode processed_logprobs",
        "--max-lora-rank 32",
        "--quantization fp8",
    ):
        assert part in shown.stdout
    refused = CliRunner().invoke(app, ["serve-rollouts", str(tmp_path / "base"), "--python", sys.executable])
    assert refused.exit_code == 2 and "has no vllm" in refused.stderr
    wrong = CliRunner().invoke(app, ["serve-rollouts", str(tmp_path / "base"), "--lora-rank", "1000", "--show"])
    assert wrong.exit_code == 2 and "ranks up to 512" in wrong.stderr
