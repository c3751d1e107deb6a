"""`confide proxy`: proven models for programs that cannot change (docs/protocols/client.md §7).

It serves on 127.0.0.1 alone, after a node was proven and not before. What fails later is an error
of the caller's API; there is no way to an unproven node, and no plaintext.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.live import Live
from rich.text import Text

from confide.adapters.receipt_db import ReceiptDatabase, UnsafeKeepNone
from confide.channel.padding import shape_of
from confide.cli.expectation_files import read_expectation
from confide.cli.localnodes import choose_model, local_engine, reference_for
from confide.cli.places import Places, read_bounded, read_roots
from confide.cli.proxy_screen import ProxyView, served_document, served_line
from confide.cli.screen import Screen, fields, simulated_line
from confide.client.expect import inference_expectation_for
from confide.client.held import TrustPolicy
from confide.client.relayed import relay_of
from confide.client.session import Session
from confide.errors import ConfigurationError

if TYPE_CHECKING:
    from confide.adapters.carrier_fast import FastCarrier
    from confide.adapters.local_endpoint import LocalEndpoint
    from confide.client.held import NodeState
    from confide.client.proxy import Served

app = typer.Typer(add_completion=False)
_PORT = 8484
_UI_PER_SECOND = 4
# Lines are written a few at a time, when answers have gone out: drawing one takes as long as
# verifying a receipt.
_LINES_SECONDS = 0.1
_NO_AIOHTTP = "this needs aiohttp: pip install 'confide[proxy]'"


@app.command()
def proxy(
    ctx: typer.Context,
    node: Annotated[
        list[str] | None,
        typer.Option(metavar="URL", help="A model node; several are candidates in order."),
    ] = None,
    expectation: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What a node has to prove.")
    ] = None,
    roots: Annotated[
        str, typer.Option(metavar="FILE", help="`vendor`, or roots of a SIMULATED platform.")
    ] = "vendor",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where on 127.0.0.1.")] = _PORT,
    max_evidence_age: Annotated[
        int, typer.Option(min=1, metavar="SECONDS", help="How long one proof counts.")
    ] = 3600,
    continuity: Annotated[
        bool, typer.Option("--continuity", help="Refuse a node that was restarted.")
    ] = False,
    relay: Annotated[
        str | None, typer.Option(metavar="URL", help="A relay, instead of --node.")
    ] = None,
    directory_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="The key of the relay's operator.")
    ] = None,
    cells: Annotated[
        int | None, typer.Option(metavar="BYTES", help="Ask for answers in cells of this size.")
    ] = None,
    cadence_ms: Annotated[
        int | None, typer.Option(metavar="MS", help="Ask for a cell of a stream every so often.")
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The key that the node asks for.")
    ] = None,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Any program of this machine may ask.")
    ] = False,
    keep_none: Annotated[
        bool, typer.Option("--unsafe-keep-none", help="Keep no receipts.")
    ] = False,
    ui: Annotated[bool, typer.Option("--ui", help="A live view instead of lines.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Serve proven models on this machine, in the shapes of OpenAI and of Anthropic.

    Without --node: the local model node (SIMULATED). Exit codes: 10 when no node is what was
    expected, 20 when none can be asked.
    """
    screen = Screen.of(ctx, as_json=as_json)
    places = Places.here()
    behind, shape = relay_of(relay, directory_key), shape_of(cells, cadence_ms)
    urls, policy = _target(places, node or [], expectation, roots, relayed=behind is not None)
    trust = TrustPolicy(
        policy.expectation, policy.roots, timedelta(seconds=max_evidence_age), continuity
    )
    key = None
    if api_key_file is not None:
        key = read_bounded(api_key_file, "API key").decode("ascii", "replace").strip()
    token = None if no_token else "confide-" + places.entropy.token(24).hex()
    keeper = UnsafeKeepNone() if keep_none else ReceiptDatabase(places.paths.receipts)

    async def work() -> None:
        carrier = _carrier()
        session = Session(
            urls,
            trust,
            keeper=keeper,
            clock=places.clock,
            entropy=places.entropy,
            relay=behind,
            shape=shape,
            carrier=carrier,
        )
        try:
            proven = await session.prove()
            await _serve(_Running(screen, places, session, token, key), proven, port, ui=ui)
        finally:
            await session.close()
            await carrier.aclose()

    asyncio.run(work())


def _carrier() -> FastCarrier:
    try:
        from confide.adapters.carrier_fast import FastCarrier  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigurationError(_NO_AIOHTTP) from error
    return FastCarrier()


def _target(
    places: Places, nodes: list[str], expectation: Path | None, roots: str, *, relayed: bool
) -> tuple[list[str], TrustPolicy]:
    if nodes or relayed:
        if nodes and relayed:
            raise ConfigurationError("--relay takes the place of --node")
        if expectation is None:
            raise ConfigurationError("--node and --relay need --expectation: what must run there")
        return nodes, TrustPolicy(read_expectation(expectation), read_roots(roots))
    if expectation is not None or roots != "vendor":
        raise ConfigurationError("--expectation and --roots belong to --node or --relay")
    engine = local_engine(places)
    for state in engine.status():
        if state.alive and state.node.role == "model":
            choice = choose_model(engine, wanted=state.node.model, upstream="", model="")
            reference = reference_for(places, engine, choice)
            wanted = inference_expectation_for(reference)
            return [state.node.url], TrustPolicy(wanted, reference.roots)
    raise ConfigurationError("no local model node runs: start one with confide up, or name --node")


class _Running:
    """What the served calls are told to."""

    def __init__(
        self, screen: Screen, places: Places, session: Session, token: str | None, key: str | None
    ) -> None:
        self.screen = screen
        self.session = session
        self.token = token
        self._places = places
        self._key = key
        self._view: ProxyView | None = None
        self._live: Live | None = None
        self._untold: list[Served] = []

    def endpoint(self) -> LocalEndpoint:
        try:
            from confide.adapters.local_endpoint import LocalEndpoint  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise ConfigurationError(_NO_AIOHTTP) from error
        from confide.client.proxy import LocalProxy  # noqa: PLC0415 - stands on the same

        proxy = LocalProxy(
            self.session,
            clock=self._places.clock,
            entropy=self._places.entropy,
            elapsed=asyncio.get_running_loop().time,
            on_served=self._tell,
            key=self._key,
        )
        return LocalEndpoint(proxy, token=self.token)

    def watch(self, live: Live, view: ProxyView) -> None:
        self._live, self._view = live, view
        self.refresh()

    def refresh(self) -> None:
        if self._live is not None and self._view is not None:
            now = self._places.clock.now()
            self._live.update(self._view.render(self.session.nodes, now))

    def _tell(self, served: Served) -> None:
        if self._view is not None:
            self._view.add(served)
        if not self._untold:
            asyncio.get_running_loop().call_later(_LINES_SECONDS, self.tell_all)
        self._untold.append(served)

    def tell_all(self) -> None:
        """Write the lines of the calls since the last time."""
        untold, self._untold = self._untold, []
        if untold and self._view is None:
            self.screen.show(*(served_line(served) for served in untold))
        for served in untold:
            self.screen.event("served", served_document(served))


async def _serve(running: _Running, proven: NodeState, port: int, *, ui: bool) -> None:
    endpoint = running.endpoint()
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    await endpoint.start(port)
    try:
        _announce(running, endpoint.url, proven)
        if not ui or running.screen.as_json:
            await stopping.wait()
            return
        with ExitStack() as stack:
            live = stack.enter_context(
                Live(console=running.screen.out, refresh_per_second=_UI_PER_SECOND)
            )
            running.watch(live, ProxyView(endpoint.url))
            while not stopping.is_set():
                running.refresh()
                with suppress(TimeoutError):
                    await asyncio.wait_for(stopping.wait(), timeout=1.0)
            running.refresh()
    finally:
        await endpoint.stop()
        running.tell_all()


def _announce(running: _Running, url: str, proven: NodeState) -> None:
    rows = [
        ("node", f"{proven.url}, proven"),
        ("OpenAI", f"OPENAI_BASE_URL={url}/v1"),
        ("Anthropic", f"ANTHROPIC_BASE_URL={url}"),
        ("API key", running.token or "none is asked for: every program of this machine may ask"),
    ]
    running.screen.show(*([simulated_line()] if proven.simulated else []), fields(rows), Text(""))
    running.screen.event(
        "ready",
        {
            "url": url,
            "node": proven.url,
            "keyset": None if proven.keyset is None else proven.keyset.hex(),
            "simulated": proven.simulated,
            "token": running.token,
        },
    )
