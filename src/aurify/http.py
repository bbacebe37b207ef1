"""Requests to servers: when to try again, and whether the hub answers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
WORTH_ANOTHER_TRY = (408, 409, 425, 429, 500, 502, 503, 504, 529)
HUB_TIMEOUT = 5.0  # seconds for the first answer of the hub


class TryAgain(Exception):
    """The answer is of no use; the next one may be better."""


async def post_with_retries(
    client: httpx.AsyncClient,
    url: str,
    body: Any,
    read: Callable[[httpx.Response], T],
    *,
    retries: int,
    max_pause: float,
    error: type[Exception],
) -> T:
    """What `read` makes of the answer; it may raise TryAgain. Raises `error` when the last attempt has failed."""
    from httpx import TransportError

    problem = ""
    for attempt in range(retries + 1):
        if attempt:
            await asyncio.sleep(max_pause * min(1.0, 2**attempt / 60) * random.uniform(0.5, 1.0))
        try:
            response = await client.post(url, json=body)
            if response.status_code == 200:
                return read(response)
        except TransportError as failure:  # no connection, or out of time
            problem = f"{type(failure).__name__}: {failure}".rstrip(": ")
        except TryAgain as failure:
            problem = str(failure)
        else:
            problem = f"status {response.status_code}: {response.text[:300]}"
            if response.status_code not in WORTH_ANOTHER_TRY:
                raise error(f"{url} answered with {problem}")
    raise error(f"{url}: after {retries + 1} attempts, {problem}")


@cache
def hub_answers() -> bool:
    """Asks once a process, for a moment: the hub's own client would repeat each request for half a minute."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT)
    except Exception:  # the errors of its transport have no common name over versions
        return False
    return True


@contextmanager
def offline_hub(*configs: Any) -> Iterator[None]:
    """Inside, clients of the hub look into their caches alone. configs: modules with a switch HF_HUB_OFFLINE."""
    before = [config.HF_HUB_OFFLINE for config in configs]
    try:
        for config in configs:
            config.HF_HUB_OFFLINE = True
        yield
    finally:
        for config, value in zip(configs, before, strict=True):
            config.HF_HUB_OFFLINE = value
