"""The local endpoint of `confide proxy` in a thread of its own, over a session of the tests."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nodes import CountingEntropy

from confide.adapters.local_endpoint import LocalEndpoint
from confide.adapters.receipt_db import UnsafeKeepNone
from confide.client.proxy import LocalProxy

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from proven_place import Place
    from training_node import TrainingOwners

    from confide.client.proxy import Served
    from confide.client.session import Session

TOKEN = "confide-of-these-tests"


@dataclass
class RunningProxy:
    """A running endpoint: where, its session, and what it told of each call."""

    url: str = ""
    served: list[Served] = field(default_factory=list)
    session: Session | None = None


@contextmanager
def running_proxy(
    place: Place | TrainingOwners,
    urls: Sequence[str],
    store: Any = None,
    *,
    token: str | None = TOKEN,
    key: str | None = None,
    **trust: Any,
) -> Iterator[RunningProxy]:
    """Serve until the end of the block."""
    found = RunningProxy()
    ready, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def main() -> None:
        session = place.session(urls, store or UnsafeKeepNone(), **trust)
        proxy = LocalProxy(
            session,
            clock=place.clock,
            entropy=CountingEntropy(b"proxy"),
            elapsed=loop.time,
            on_served=found.served.append,
            key=key,
        )
        endpoint = LocalEndpoint(proxy, token=token)
        await endpoint.start(0)
        found.url, found.session = endpoint.url, session
        ready.set()
        await stop.wait()
        await endpoint.stop()
        await session.close()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    try:
        if not ready.wait(30):
            raise AssertionError("the endpoint did not start")
        yield found
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        loop.close()
