"""`httpx2` clients over the transports of `answer_transport`: what an SDK takes as its client.

No environment, no redirects: a proxy or a location cannot divert what only one place may get.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx2

from confide.adapters.answer_transport import AnswerTransport, BlockingTransport
from confide.adapters.loop_thread import LoopThread

if TYPE_CHECKING:
    from confide.adapters.answer_transport import Sender, Translate

__all__ = ["AnswerClient", "BlockingClient", "answer_client", "blocking_client"]


class AnswerClient(httpx2.AsyncClient):
    """An asynchronous client that knows what carries its requests."""

    sender: Sender


class BlockingClient(httpx2.Client):
    """A blocking client that knows what carries its requests, and the loop where that runs."""

    sender: Sender
    loop: LoopThread


def answer_client(sender: Sender, *, translate: Translate) -> AnswerClient:
    """Return an asynchronous client over `sender`, which closes it."""
    client = AnswerClient(
        transport=AnswerTransport(sender, translate=translate),
        trust_env=False,
        follow_redirects=False,
    )
    client.sender = sender
    return client


def blocking_client(sender: Sender, *, translate: Translate) -> BlockingClient:
    """Return a blocking client over `sender`, which closes it and ends its thread."""
    loop = LoopThread("confide-client")
    client = BlockingClient(
        transport=BlockingTransport(sender, loop, translate=translate),
        trust_env=False,
        follow_redirects=False,
    )
    client.sender, client.loop = sender, loop
    return client
