"""Samples from vLLM servers over HTTP: `sampler: {kind: vllm_server, options: {num_servers: 2}}`. Written for vLLM
0.32; see docs/vllm.md.

Token ids go in and come out; log-probs are those of the distribution that a token was drawn from. Each new version of
the weights is written to a folder that the servers read: as a LoRA adapter where the engine trains one, else whole.
Nothing is sampled meanwhile, so every answer is of one version. A push is complete when the server has read it, has
forgotten its prefix cache, bears our label, and gives a short answer about the log-probs that the trainer gives it.

Requests with a common beginning go to the server that has it in its cache, unless that one is much busier than another.
A server that fails is out until it is healthy and has the weights of now; those that we have started are started again.
Its requests go to another server, or wait for it. So a request ends with its completions, or with an error that says
what is wrong with each server."""

from __future__ import annotations

import asyncio
import logging
import random
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

import numpy as np
from torch import Tensor

from aurify.bounds import Checked, PositiveFloat, PositiveInt
from aurify.engine.adapter import Adapter
from aurify.engine.engine import Engine
from aurify.engine.lora import LoraLinear
from aurify.engine.weights import Weights, write_shards
from aurify.errors import UserError
from aurify.files import require
from aurify.http import TryAgain
from aurify.models.embeddings import check_embedding_ids
from aurify.samplers.inprocess import CLOSED, find_stop_tokens
from aurify.samplers.sampler import current_session
from aurify.samplers.vllm_servers import (
    ADAPTER,
    COMPLETIONS,
    LOGPROBS,
    RANKS,
    Server,
    choose_adapter_flags,
    choose_server_python,
    open_servers,
)
from aurify.types import Completion, Datum, SamplingParams

log = logging.getLogger("aurify")

BLOCK = 64  # tokens by which beginnings of prompts are compared
SLACK = 8  # requests that a server may have more than twice those of another, before a prompt leaves it
ATTEMPTS = 6  # of a request
PROBE, MAX_GAP = 8, 0.5  # tokens, and nats a token: bf16 alone makes about 0.02, another model several


@dataclass(eq=False)
class VllmServerSampler(Checked):
    engine: Engine
    max_batch: PositiveInt = 64  # of each server that is started here
    max_context: int | None = None
    seed: int = 0
    make_server: ClassVar[type[Server]] = Server
    urls: str | list[str] | None = None  # of servers that run already; None: they are started
    num_servers: PositiveInt = 1  # to start
    python: str | None = None  # that has vllm; None: $AURIFY_VLLM_PYTHON, else our own
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of vLLM, such as {tensor_parallel_size: 2}
    environment: Mapping[str, Any] = field(default_factory=dict)  # variables of the servers
    push: Literal["auto", "adapter", "full"] = "auto"  # auto: adapter where vLLM can read it
    folder: str | None = None  # for weights: servers on other machines must see it; None: a temporary one
    start_seconds: PositiveFloat = 900.0  # for a server to be healthy, or to take weights
    request_seconds: PositiveFloat = 900.0  # for an answer

    def __post_init__(self) -> None:
        super().__post_init__()
        self.httpx = require("httpx", "serve", "to ask a vLLM server")
        if self.engine.head is None:
            raise UserError(f"{self.engine.name} has a scalar head (a reward model): there are no tokens to sample")
        urls = [self.urls] if isinstance(self.urls, str) else list(self.urls or ())
        if bad := [url for url in urls if not url.startswith(("http://", "https://"))]:
            raise UserError(f"urls: {bad[0]!r}; expected something like http://127.0.0.1:8000")
        if urls and (idle := [name for name in ("python", "arguments", "environment") if getattr(self, name)]):
            raise UserError(f"{idle[0]}: it is for servers that are started here; leave it out, or leave out urls")
        self.max_context = self.room = min(self.max_context or self.engine.max_context, self.engine.max_context)
        self.stop_tokens = find_stop_tokens(self.engine)
        self.seeds = np.random.default_rng(self.seed)
        self.as_adapter = choose_server_push(self.push, self.engine.adapter)
        self.started = None if urls else open_servers(self.engine, self.num_servers, *self._choose_launch())
        self.servers = [self.make_server(None, url) for url in urls]
        self.servers += [self.make_server(process) for process in (self.started.processes if self.started else ())]
        parent = self.folder or (self.started.folder if self.started else None)
        self.weights_folder = Path(tempfile.mkdtemp(prefix="aurify-weights-", dir=parent))
        self.weights_folder.chmod(0o755)  # servers may be of other users
        self.version, self.label, self.own_weights = self.engine.version, "", True
        self.homes: dict[int, Server] = {}  # beginnings of prompts -> where they were sent
        self.num_running, self.gate, self.idle = 0, asyncio.Event(), asyncio.Event()
        self.pushing = asyncio.Lock()
        self.first_push: asyncio.Task[None] | None = None
        self.client: Any = None
        self.closed = False

    def _choose_launch(self) -> tuple[str, dict[str, Any], Mapping[str, Any]]:
        flags: dict[str, Any] = {
            "dtype": str(self.engine.dtype).removeprefix("torch."),
            "max_model_len": self.room,
            "max_num_seqs": self.max_batch,
            **LOGPROBS,
        }
        if self.as_adapter:
            assert self.engine.adapter is not None
            flags |= choose_adapter_flags(find_max_rank(self.engine.adapter))
        flags |= {name.replace("-", "_"): value for name, value in self.arguments.items()}
        return choose_server_python(self.python), flags, self.environment

    # ------------------------------------------------------------------ sampling

    async def sample(
        self,
        prompt: list[int],
        params: SamplingParams,
        n: int = 1,
        *,
        on_token: Callable[[int], None] | None = None,
    ) -> list[Completion]:
        """on_token: called with the tokens of a single completion when it has ended."""
        if not 0 < len(prompt) < self.room:
            raise UserError(
                f"the prompt has {len(prompt)} tokens; the context has room for 1 to {self.room - 1}: "
                "shorten the prompt, or raise sampler.max_context if the model allows more"
            )
        check_embedding_ids(prompt, self.engine.vocabulary, f"{self.engine.name}: the prompt")
        if self.closed:
            raise ValueError(CLOSED)
        seed = int(self.seeds.integers(2**63)) if params.seed is None else params.seed
        if not self.label:  # nobody has pushed yet, as where a model is only measured
            if self.first_push is None:
                push = self.load_weights(self.engine.weights(), self.engine.version)
                self.first_push = asyncio.ensure_future(push)
            await asyncio.shield(self.first_push)
        while not self.gate.is_set():
            await self.gate.wait()
        self.num_running += 1
        requests = [asyncio.ensure_future(self._complete(prompt, params, seed, index)) for index in range(n)]
        try:
            completions = list(await asyncio.gather(*requests))
        finally:
            for request in requests:
                request.cancel()
            self.num_running -= 1
            self.idle.set()
        for token in completions[0].tokens if on_token is not None else ():
            on_token(token)  # type: ignore[misc]
        return completions

    async def _complete(self, prompt: list[int], params: SamplingParams, seed: int, index: int) -> Completion:
        problem = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(pause_before_retry(attempt))
            server = await self._choose(prompt)
            server.in_flight, server.num_sent = server.in_flight + 1, server.num_sent + 1
            try:
                completion = await self._ask(server, prompt, params, seed, index)
                if server.process is not None:
                    server.process.starts = 0
                elif await server.read_label(self._client()) != self.label:
                    raise TryAgain("it has lost our weights: it was started anew, or has another trainer")
                return completion
            except (self.httpx.TransportError, TryAgain) as error:
                problem = describe_server_failure(error)
                if server.label:  # told once, not for all of its requests
                    log.warning("%s: %s. What it was asked is asked again", server.url, problem)
                if not isinstance(error, self.httpx.ReadTimeout):  # else it is only slow
                    server.label = ""
            finally:
                server.in_flight -= 1
        raise UserError(f"a request was tried {ATTEMPTS} times; the last time {server.url}: {problem}")

    async def _ask(
        self, server: Server, prompt: list[int], params: SamplingParams, seed: int, index: int
    ) -> Completion:
        body: dict[str, Any] = {
            "prompt": prompt,
            "max_tokens": min(params.max_tokens, self.room - len(prompt)),
            "temperature": params.temperature,
            "top_k": params.top_k,
            "top_p": params.top_p,
            "min_p": params.min_p,
            # a server may have other defaults, from the model's folder
            **{"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0},
            "seed": int(np.random.SeedSequence([seed % 2**64, index]).generate_state(1, np.uint64)[0] >> 1),
            "stop": list(params.stop),
            "stop_token_ids": sorted(self.stop_tokens | set(params.stop_tokens)),
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,  # a stop string may hold them
            "logprobs": 0,  # of the sampled token alone
            "return_token_ids": True,
        }
        if self.as_adapter:
            body["model"] = ADAPTER
        answer = await server.post(self._client(), COMPLETIONS, body, self.request_seconds)
        return read_server_completion(answer, prompt, self.version, server.url)

    # ------------------------------------------------------------------ which server

    async def _choose(self, prompt: list[int]) -> Server:
        """A server with the weights of now; waits until there is one."""
        while True:
            for server in self.servers:
                if server.label != self.label and server.mending is None and server.lost is None:
                    server.mending = asyncio.ensure_future(self._bring_up(server))
            if ready := [server for server in self.servers if server.label == self.label]:
                return self._route(ready, prompt)
            mending = [server.mending for server in self.servers if server.mending is not None]
            if not mending:
                raise UserError("no vLLM server is left: " + "; ".join(str(server.lost) for server in self.servers))
            await asyncio.wait(mending, return_when=asyncio.FIRST_COMPLETED)

    def _route(self, ready: list[Server], prompt: list[int]) -> Server:
        """Where the session is at home, else the longest known beginning of the prompt."""
        session, key = current_session.get(), 0
        beginnings: list[int] = []
        for start in range(0, len(prompt), BLOCK):
            beginnings.append(key := hash((key, *prompt[start : start + BLOCK])))
        if session is not None:
            beginnings.append(id(session))
        chosen = min(ready, key=lambda server: (server.in_flight, server.num_sent))
        home = next((self.homes[key] for key in reversed(beginnings) if self.homes.get(key) in ready), chosen)
        if home.in_flight <= 2 * chosen.in_flight + SLACK:
            chosen = home
        self.homes.update(dict.fromkeys(beginnings, chosen))
        return chosen

    async def _bring_up(self, server: Server) -> None:
        try:
            for attempt in range(ATTEMPTS):
                try:
                    await self._try_to_bring_up(server)
                    return
                except (self.httpx.TransportError, TryAgain) as error:
                    problem = f"{server.url}: {describe_server_failure(error)}"
                await asyncio.sleep(pause_before_retry(attempt + 1))
            raise UserError(problem)
        except (UserError, KeyError, TypeError, ValueError) as error:
            server.lost = (
                error if isinstance(error, UserError) else UserError(f"{server.url}: {describe_server_failure(error)}")
            )
            log.warning("a vLLM server is given up: %s", server.lost)
        finally:
            server.mending = None

    async def _try_to_bring_up(self, server: Server) -> None:
        client = self._client()
        await server.wait_until_healthy(client, self.start_seconds)
        if server.process is None:
            await server.check_settings(client, self.room)
        while server.label != (label := self.label):
            if await server.read_label(client) != label:
                folder = (self.weights_folder / label).resolve()
                await server.load(client, folder, adapter=self.as_adapter, seconds=self.start_seconds)
                await self._check_push(server)
                await server.write_label(client, label)
            server.label = label

    # ------------------------------------------------------------------ weights

    async def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Waits for the requests in flight. A server that does not take the weights is given up; the last one is an
        error."""
        async with self.pushing:
            self.gate.clear()
            try:
                await self._load(weights, version)
            finally:
                self.gate.set()

    async def rest(self) -> None:
        """Servers have cards of their own: they stay as they are."""

    async def _wait_until_idle(self) -> None:
        while self.num_running:
            self.idle.clear()
            await self.idle.wait()

    async def _load(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        await self._wait_until_idle()
        label, before = f"{uuid.uuid4().hex[:8]}-{version}", self.label
        await asyncio.to_thread(self._write, weights, self.weights_folder / label)
        self.version, self.label = version, label
        self.homes.clear()
        for server in self.servers:
            server.lost = server.lost if server.process is not None else None  # another's may be back
        waited = [server for server in self.servers if server.label == before]  # not for those that are just ill
        await self._choose([0])
        if pushes := [server.mending for server in waited if server.mending is not None]:
            await asyncio.wait(pushes)
        for old in self.weights_folder.iterdir():
            if old.name != label and not any(server.mending for server in self.servers):
                shutil.rmtree(old, ignore_errors=True)

    def _write(self, weights: Iterable[tuple[str, Tensor]], folder: Path) -> None:
        folder.mkdir()
        with self.engine.lock:
            self.own_weights = isinstance(weights, Weights) and weights.module is self.engine.module
            if not self.as_adapter:
                write_shards(weights, folder, self.engine.module)
            elif self.own_weights and self.engine.adapter is not None:
                self.engine.adapter.save(folder, self.engine.name, {"origin": self.engine.origin})
            else:
                raise UserError("only the engine's own weights can be pushed as an adapter; set push: full")

    async def _check_push(self, server: Server) -> None:
        """Compares a short answer with the trainer: whatever is missing, or wrong on the way, shows up here."""
        if not self.own_weights or self.engine.version != self.version:
            return
        prompt = self.engine.tokenizer("The answer is", add_special_tokens=False).input_ids[: self.room // 2]
        answer = await self._ask(server, prompt, SamplingParams(max_tokens=PROBE), 0, 0)
        datum = Datum([*prompt, *answer.tokens], [0.0] * len(prompt) + [1.0] * len(answer.tokens))
        [known] = await asyncio.to_thread(self.engine.logprobs, [datum])
        gap = fmean(abs(a - b) for a, b in zip(known[len(prompt) :], answer.logprobs, strict=True))
        log.debug("%s: version %d, %.4f nats from the trainer", server.url, self.version, gap)
        if gap > MAX_GAP:
            raise UserError(
                f"{server.url} has taken the weights, and its log-probs differ from the trainer's by {gap:.2f} nats a "
                f"token: it serves another model than {self.engine.name}, or has not taken all of them"
            )

    def _client(self) -> Any:
        if self.client is None:
            # vLLM closes idle connections after 5 seconds; one that is used at that moment would break off
            limits = self.httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=2.0)
            own = all(s.process or urlsplit(s.address).hostname in ("127.0.0.1", "localhost") for s in self.servers)
            self.client = self.httpx.AsyncClient(limits=limits, trust_env=not own)  # never by way of a proxy
        return self.client

    async def close(self) -> None:
        """Servers that were started here go on: the engine may want them again."""
        if self.closed:
            return
        self.closed = True
        mending = [server.mending for server in self.servers if server.mending is not None]
        for task in mending:
            task.cancel()
        await asyncio.gather(*mending, return_exceptions=True)
        if self.client is not None:
            await self.client.aclose()
        if self.started is not None:
            self.started.num_open -= 1
        shutil.rmtree(self.weights_folder, ignore_errors=True)


def pause_before_retry(attempt: int) -> float:
    return min(0.1 * 4**attempt, 10.0) * random.uniform(0.5, 1.0)


def describe_server_failure(error: Exception) -> str:
    return str(error) if isinstance(error, TryAgain) else f"{type(error).__name__}: {error}".rstrip(": ")


def read_server_completion(answer: Any, prompt: list[int], version: int, url: str) -> Completion:
    choice = answer["choices"][0]
    tokens, logprobs = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
    if tokens is None or logprobs is None or len(tokens) != len(logprobs):
        raise UserError(f"{url} tells no token ids with their log-probs; it must be vLLM 0.32 or one like it")
    if choice.get("prompt_token_ids") != prompt:
        raise UserError(f"{url} has read another prompt than it was sent")
    if not tokens or choice["finish_reason"] not in ("stop", "length"):
        raise TryAgain(f"an answer ended with {choice['finish_reason']!r}")
    return Completion(tokens, logprobs, choice["finish_reason"], [version] * len(tokens))


def find_max_rank(adapter: Adapter) -> int:
    return max(layer.lora_A.shape[0] for layer in adapter.layers.values())


def choose_server_push(push: str, adapter: Adapter | None) -> bool:
    """Whether weights go as an adapter."""
    layers = list(adapter.layers.values()) if adapter is not None else []
    if adapter is None:
        reason = "the engine trains none"
    elif any(not isinstance(x, LoraLinear) or x.is_head or x.lora_magnitude is not None for x in layers):
        reason = "vLLM reads none with DoRA, on embeddings or on the head"
    elif adapter.extras:
        reason = "whole weights are trained beside it"
    elif find_max_rank(adapter) > RANKS[-1]:
        reason = f"vLLM reads ranks up to {RANKS[-1]}"
    else:
        return push != "full"
    if push == "adapter":
        raise UserError(f"push: no adapter can be pushed: {reason}; set push: full")
    return False
