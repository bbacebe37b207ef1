"""Requests to servers: httpx, which only extras bring, and when another attempt is worth it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from aurify.errors import UserError

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
WORTH_ANOTHER_TRY = (408, 409, 425, 429, 500, 502, 503, 504, 529)


class TryAgain(Exception):
    """The answer is of no use; the next one may be better."""


def import_httpx(need: str, extra: str) -> Any:
    """need: the beginning of the error that says how to install it."""
    try:
        import httpx
    except ModuleNotFoundError:
        raise UserError(f"{need}: pip install 'aurify[{extra}]'") from None
    return httpx


async def post(
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
