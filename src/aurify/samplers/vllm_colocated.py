"""vLLM on the trainer's own card: `sampler: {kind: vllm_colocated}`. The two take turns. A server sleeps while the
trainer computes, and its memory is free meanwhile; it wakes with the new weights. See docs/vllm.md.

It is a server all the same, with a Python of its own. Where an adapter is pushed, the base's weights wait in host
memory (vLLM's level 1). Where all weights are pushed, nothing is kept (level 2): they come anyway, and the cache is
made anew only when they are there."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from torch import Tensor

from aurify.bounds import Ge, Le
from aurify.errors import UserError
from aurify.samplers.vllm_server import VllmServerSampler
from aurify.samplers.vllm_servers import Server

if TYPE_CHECKING:
    import httpx

log = logging.getLogger("aurify")

GIB = 2**30
GIVEN_BACK = 0.5  # of its share that a server must free: what its process keeps (context, graphs) is far less


class SleepingServer(Server):
    level = 0  # of its sleep

    async def wait_until_healthy(self, client: httpx.AsyncClient, seconds: float) -> None:
        await super().wait_until_healthy(client, seconds)
        if self.level == 1 and await self.is_asleep(client):  # it has all that it had
            await self.post(client, "/wake_up", {}, seconds)

    async def load(self, client: httpx.AsyncClient, folder: Path, *, adapter: bool, seconds: float) -> None:
        if await self.is_asleep(client):
            await self.post(client, "/wake_up?tags=weights", {}, seconds)
            await super().load(client, folder, adapter=adapter, seconds=seconds)
            await self.post(client, "/wake_up?tags=kv_cache", {}, seconds)
            if await self.is_asleep(client):
                raise UserError(f"{self.url} was woken, and says that it sleeps")
            return
        await super().load(client, folder, adapter=adapter, seconds=seconds)

    async def sleep(self, client: httpx.AsyncClient, level: int, seconds: float) -> None:
        self.label, self.level = "", level  # what is asked next must wait until it is awake and has weights
        await self.post(client, f"/sleep?level={level}&mode=wait", {}, seconds)
        if not await self.is_asleep(client):
            raise UserError(f"{self.url} was told to sleep, and says that it is awake")

    async def read_label(self, client: httpx.AsyncClient) -> str:
        """Asleep it has no weights: it gets those of now, which wakes it."""
        return "" if await self.is_asleep(client) else await super().read_label(client)

    async def is_asleep(self, client: httpx.AsyncClient) -> bool:
        return bool((await self.get(client, "/is_sleeping"))["is_sleeping"])


@dataclass(eq=False)
class VllmColocatedSampler(VllmServerSampler):
    make_server: ClassVar[type[Server]] = SleepingServer
    share: Annotated[float, Ge(0.05), Le(0.95)] = 0.5  # of the card's memory, that vLLM may take while it is awake

    def __post_init__(self) -> None:
        if self.urls:
            raise UserError("urls: a colocated server is started here; leave urls out, or say kind: vllm_server")
        if self.num_servers != 1:
            raise UserError("num_servers: a card has room for one server; for several say kind: vllm_server")
        super().__post_init__()

    @property
    def has_card(self) -> bool:
        return self.engine.device.type == "cuda"

    def _choose_launch(self) -> tuple[str, dict[str, Any], Mapping[str, Any]]:
        python, flags, environment = super()._choose_launch()
        if self.has_card:  # vLLM's CPU build refuses to be told of sleep, and takes no share
            flags = {"enable_sleep_mode": True, "gpu_memory_utilization": self.share} | flags
        return python, flags, environment

    async def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        if self.has_card:  # what training has freed is for vLLM now
            gc.collect()
            torch.cuda.empty_cache()
        await super().load_weights(weights, version)

    async def rest(self) -> None:
        """Puts the servers to sleep when the requests in flight have ended, and sees that memory is free."""
        async with self.pushing:
            self.gate.clear()
            try:
                await self._wait_until_idle()
                await asyncio.gather(*(self._put_to_sleep(server) for server in self.servers if server.label))
            finally:
                self.gate.set()

    async def _put_to_sleep(self, server: Server) -> None:
        assert isinstance(server, SleepingServer)
        before = self._free_bytes()
        try:
            await server.sleep(self._client(), 1 if self.as_adapter else 2, self.start_seconds)
        except self.httpx.TransportError as error:  # it has ended: it is started again when it is needed
            log.warning("%s fell silent on its way to sleep: %s", server.url, error)
            return
        if not self.has_card:
            log.debug("vLLM's CPU build keeps its memory while it sleeps")
            return
        freed, share = self._free_bytes() - before, self.share * torch.cuda.mem_get_info(self.engine.device)[1]
        log.debug("%s sleeps: %.2f GiB are free again", server.url, freed / GIB)
        if freed < GIVEN_BACK * share:
            raise UserError(
                f"{server.url} sleeps and has given back {freed / GIB:.2f} GiB of the {share / GIB:.2f} that it may "
                "take: training would run out of memory. Lower sampler.options.share, or say kind: vllm_server"
            )

    def _free_bytes(self) -> int:
        return torch.cuda.mem_get_info(self.engine.device)[0] if self.has_card else 0

    async def close(self) -> None:
        if not self.closed:
            await self.rest()
        await super().close()
