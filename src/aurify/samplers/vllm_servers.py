"""vLLM servers: what a sampler asks of one, and those that we start.

They have a Python of their own, since vLLM wants other versions of torch and transformers. They belong to an engine and
outlive a sampler: a stage measures, trains and measures again with the same ones. They end with the engine, when
another engine wants servers, and with our process, however that ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aurify.engine.engine import Engine
from aurify.engine.weights import base_weights, write_shards
from aurify.errors import UserError
from aurify.http import WORTH_ANOTHER_TRY, TryAgain
from aurify.models.loading import quiet_transformers
from aurify.models.names import resolve_model

if TYPE_CHECKING:
    import httpx

log = logging.getLogger("aurify")

API_SERVER = ("-m", "vllm.entrypoints.openai.api_server")
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM can be started for
LOGPROBS = {"logprobs_mode": "processed_logprobs"}  # of the distribution that a token was drawn from
ADAPTER = "aurify"  # what servers call our adapter
COMPLETIONS = "/v1/completions"
MAX_STARTS = 3  # of a server that gives no answer in between
# The shell ends the server, and all that it has started, when our end of its input closes: when we are killed, too.
GUARD = (
    'exec 3<&0; trap : TERM; "$@" </dev/null 3<&- & server=$!; '
    "(trap - TERM; cat <&3 >/dev/null; kill -9 -$$) & while kill -0 $server 2>/dev/null; do wait $server; done"
)
END_SECONDS = 10.0  # that a server has to end by itself
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",  # all it needs is in a folder
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_SERVER_DEV_MODE": "1",  # routes for weights and the prefix cache
}


class Process:
    """One server, which only this machine can reach."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.command, self.log, self.url = list(command), log, ""
        ours = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
        self.environment = ours | ENVIRONMENT | {name: str(value) for name, value in environment.items()}
        self.running: subprocess.Popen[bytes] | None = None
        self.starts = 0  # since it last gave an answer
        self.was_up = False

    @property
    def alive(self) -> bool:
        return self.running is not None and self.running.poll() is None

    def start(self) -> None:
        self.end()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url, self.starts = f"http://127.0.0.1:{port}", self.starts + 1
        with self.log.open("ab") as log:
            self.running = subprocess.Popen(
                ["sh", "-c", GUARD, "aurify-vllm", *self.command, "--host", "127.0.0.1", "--port", str(port)],
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us: the step that runs still needs the server
            )

    def end(self) -> None:
        running, self.running = self.running, None
        if running is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.wait(END_SECONDS)
        assert running.stdin is not None
        running.stdin.close()

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-200:] if self.log.exists() else []
        errors = [line.strip() for line in lines if "Error" in line or "not found" in line]
        return " | ".join((errors or lines)[-3:])[-1000:] or "nothing"


class Server:
    """A server, as a sampler sees it."""

    def __init__(self, process: Process | None, address: str = "") -> None:
        self.process, self.address = process, address.rstrip("/")  # process None: it is somebody else's
        self.label = ""  # of the weights that it has; "": not known
        self.in_flight = self.num_sent = 0
        self.mending: asyncio.Task[None] | None = None
        self.lost: UserError | None = None  # why it is given up

    @property
    def url(self) -> str:
        return self.process.url if self.process else self.address

    async def wait_until_healthy(self, client: httpx.AsyncClient, seconds: float) -> None:
        """Starts it, if it is ours and does not run."""
        from httpx import TransportError

        until, pause, process = time.monotonic() + seconds, 0.1, self.process
        while True:
            late = time.monotonic() > until
            if process is not None and (late or not process.alive):
                if process.starts >= (MAX_STARTS if process.was_up else 1):
                    raise UserError(
                        f"a vLLM server {'is not healthy' if late else 'has ended'} after {process.starts} starts. It "
                        f"wrote: {process.last_words()}. It needs a python with vllm: see docs/vllm.md"
                    )
                if process.was_up:
                    log.warning("%s: the vLLM server has ended; it is started again", process.url)
                await asyncio.to_thread(process.start)
                until = time.monotonic() + seconds
            elif late:
                raise UserError(f"{self.url} was not healthy for {seconds:g} seconds")
            with contextlib.suppress(TransportError):
                if (await client.get(f"{self.url}/health", timeout=10.0)).status_code == 200:
                    if process is not None:
                        process.was_up = True
                    return
            await asyncio.sleep(pause)
            pause = min(1.5 * pause, 3.0)

    async def check_settings(self, client: httpx.AsyncClient, max_context: int) -> None:
        """Refuses a server of somebody else whose answers would not be what a trainer takes them for."""
        info = (await self.get(client, "/server_info?config_format=json"))["vllm_config"]["model_config"]
        if (mode := info["logprobs_mode"]) != "processed_logprobs":
            raise UserError(f"{self.url} gives {mode}; start it with --logprobs-mode processed_logprobs")
        if (limit := info["max_model_len"]) < max_context:
            raise UserError(
                f"{self.url} takes {limit} tokens, and we may send {max_context}: set sampler.max_context: {limit}"
            )

    async def load(self, client: httpx.AsyncClient, folder: Path, *, adapter: bool, seconds: float) -> None:
        """Reads weights from a folder, and forgets what it has computed with others."""
        if adapter:
            body = {"lora_name": ADAPTER, "lora_path": str(folder), "load_inplace": True}
            await self.post(client, "/v1/load_lora_adapter", body, seconds)
        else:
            call = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
            await self.post(client, "/collective_rpc", call, seconds)
        for attempt in range(6):  # refused while it holds blocks of a request that was given up
            if (await self.post(client, "/reset_prefix_cache", {}, seconds))["success"]:
                return
            await asyncio.sleep(0.1 * 2**attempt)
        raise UserError(f"{self.url} does not reset its prefix cache: does somebody else ask it?")

    async def read_label(self, client: httpx.AsyncClient) -> str:
        """What weights it has; a server that was started anew has none of ours."""
        return str((await self.get(client, "/weight_info"))["weight_version"])

    async def write_label(self, client: httpx.AsyncClient, label: str) -> None:
        await self.post(client, "/update_weight_version", {"new_version": label}, 60.0)

    async def get(self, client: httpx.AsyncClient, path: str) -> Any:
        return read_server_answer(await client.get(self.url + path, timeout=60.0), path)

    async def post(self, client: httpx.AsyncClient, path: str, body: Any, seconds: float) -> Any:
        from httpx import Timeout

        timeout = Timeout(seconds, connect=10.0)
        return read_server_answer(await client.post(self.url + path, json=body, timeout=timeout), path)


def read_server_answer(response: httpx.Response, path: str) -> Any:
    """What a route answers. TryAgain: another server, or this one when it is mended, may do better."""
    if response.status_code == 200:
        return response.json() if "json" in response.headers.get("content-type", "") else {}
    problem = f"{path.partition('?')[0]} answered with status {response.status_code}: {response.text[:500]}"
    sampling = path == COMPLETIONS
    if response.status_code in WORTH_ANOTHER_TRY or (sampling and response.status_code == 404):  # 404: no adapter
        raise TryAgain(problem)
    if not sampling and response.status_code in (404, 405):
        problem += "; start it with --enable-lora, VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and VLLM_SERVER_DEV_MODE=1"
    raise UserError(f"{response.url.copy_with(path='/', query=None)}: {problem}")


class Servers:
    """The servers of an engine, and a folder for their logs and weights."""

    def __init__(self, key: str, engine: Engine, command: Sequence[str], num: int, environment: Mapping[str, str]):
        self.key, self.folder, self.num_open = key, Path(tempfile.mkdtemp(prefix="aurify-vllm-")), 0
        command = [*command, "--model", str(find_server_base(engine, self.folder))]
        self.processes = [Process(command, environment, self.folder / f"server-{n}.log") for n in range(num)]
        weakref.finalize(engine, self.end)

    def end(self) -> None:
        for process in self.processes:
            process.end()
        shutil.rmtree(self.folder, ignore_errors=True)


OPEN: weakref.WeakKeyDictionary[Engine, Servers] = weakref.WeakKeyDictionary()


def open_servers(
    engine: Engine, num: int, python: str, flags: Mapping[str, Any], environment: Mapping[str, str]
) -> Servers:
    """Those of the engine, if they were made with the same options; else new ones, which nobody has started yet."""
    command = [python, *API_SERVER, *write_server_flags(flags)]
    key, known = json.dumps([num, command, dict(environment)]), OPEN.get(engine)
    if known is None or known.key != key:
        for other, servers in list(OPEN.items()):  # of a model that is done with: its memory is needed
            if servers.num_open == 0:
                OPEN.pop(other).end()
        known = OPEN[engine] = Servers(key, engine, command, num, environment)
    known.num_open += 1
    return known


def choose_server_python(python: str | None) -> str:
    return python or os.environ.get("AURIFY_VLLM_PYTHON") or sys.executable


def choose_adapter_flags(rank: int) -> dict[str, Any]:
    """For adapters of this rank and less."""
    enough = next((one for one in RANKS if one >= rank), None)
    if enough is None:
        raise UserError(f"vLLM reads adapters of ranks up to {RANKS[-1]}, not {rank}")
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": enough}


def write_server_flags(flags: Mapping[str, Any]) -> list[str]:
    """`{tensor_parallel_size: 2, enable_lora: true}` as `--tensor-parallel-size 2 --enable-lora`."""
    words: list[str] = []
    for name, value in flags.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", json.dumps(value) if isinstance(value, Mapping | list) else str(value)]
    return words


def find_server_base(engine: Engine, folder: Path) -> Path:
    """A folder with the engine's model below its adapter that vLLM can read: the model's own, or, where its files are
    of another kind or it has other rows of the embedding, a new one."""
    files = resolve_model(engine.name)
    own = Path(files.source)
    if files.gguf is None and (own / "config.json").is_file() and any(own.glob("*.safetensors")):
        config = json.loads((own / "config.json").read_text())
        if config.get("vocab_size") == engine.vocabulary:
            return own
    base = folder / "base"
    base.mkdir()
    config = engine.module.config.to_dict() | {"architectures": [type(engine.module).__name__]}
    (base / "config.json").write_text(json.dumps(config, indent=2, default=str))
    with engine.lock, quiet_transformers():
        engine.tokenizer.save_pretrained(base)
        write_shards(base_weights(engine.module), base, engine.module)
    return base
