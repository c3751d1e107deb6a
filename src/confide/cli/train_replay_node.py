"""`confide train replay --node`: another attested node executes, and signs what it found.

docs/protocols/training-record.md 7.8. What it signed is kept, where it is asked for, whatever it
says; it counts once it was held to proof and to the draw that was made here.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.adapters.endorsement_http import SystemSleeper
from confide.adapters.files import write_atomically
from confide.adapters.http_client import make_node_client, require_node_url
from confide.cli.data_files import read_salt
from confide.cli.expectation_files import read_expectation
from confide.cli.places import Places, read_roots
from confide.cli.replay_screen import Executed
from confide.cli.training_materials import has_end
from confide.client.held import HeldNode, TrustPolicy
from confide.client.train_node import TrainingNode
from confide.client.train_replay import ReplayOrder, replay_elsewhere
from confide.errors import ConfigurationError
from confide.training.replay_verify import Asked, verify_replay

if TYPE_CHECKING:
    from pathlib import Path

    from confide.cli.replay_screen import Draw
    from confide.cli.screen import Screen
    from confide.cli.training_materials import Given
    from confide.expectation import Expectation
    from confide.training.audit import AuditedLog
    from confide.training.draw import Sample
    from confide.training.replay import Tolerance
    from confide.training.replay_result import ReplayFile
    from confide.trust.roots import Roots

__all__ = ["Ask", "NodeChoice", "choose_node", "replay_there"]

_TOKEN_BYTES: Final = 24
_NONCE_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class NodeChoice:
    """A node at `url`, what is accepted as that node, and where its word is kept, if anywhere."""

    url: str
    expectation: Expectation
    roots: Roots
    output: Path | None


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked of the node, and the files that go with it."""

    given: Given
    audited: AuditedLog
    sample: Sample
    tolerance: Tolerance | None
    draw: Draw
    checkpoints: Path
    checkpoint_key: Path
    bisect: bool
    elsewhere: bool


def choose_node(
    node: str | None,
    expectation: Path | None,
    roots: str | None,
    base: Path | None,
    output: Path | None,
) -> NodeChoice | None:
    """Return the node that options name; None for this machine. Raises `ConfigurationError`."""
    if node is None:
        if expectation is not None or roots is not None or output is not None:
            raise ConfigurationError("--expectation, --roots and --output go with --node")
        if base is None:
            raise ConfigurationError("--base is needed, or --node")
        return None
    if base is not None:
        raise ConfigurationError("--base is for this machine: a node has its own")
    if expectation is None:
        raise ConfigurationError("--node needs --expectation: what must run there is yours to say")
    if roots is None:
        raise ConfigurationError("--node needs --roots: vendor, or a simulated roots file")
    require_node_url(node)
    url = node.rstrip("/").removesuffix("/v1")
    return NodeChoice(url, read_expectation(expectation), read_roots(roots), output)


def replay_there(screen: Screen, choice: NodeChoice, ask: Ask) -> Executed:
    """
    Have the node execute; return what it found, verified, where everything agrees.

    Raises `TrainingRejected` for a step that differs, and for a result that does not hold.
    """
    places = Places.here()
    ended = has_end(ask.checkpoints, ask.audited)
    nonce = places.entropy.token(_NONCE_BYTES)
    asked = Asked(nonce, ask.sample, ask.tolerance, ask.audited, ended)
    file = asyncio.run(_executed(screen, places, choice, _order(choice, ask, asked)))
    if choice.output is not None:
        write_atomically(choice.output, file.encode(), mode=0o644)
    signed = verify_replay(
        file,
        roots=choice.roots,
        now=places.clock.now(),
        expectation=choice.expectation,
        record=None,
        asked=asked,
    )
    signed.require_agreement()
    said = signed.result
    return Executed(ask.sample, said.executed, said.states, ask.tolerance, said.made, signed)


def _order(choice: NodeChoice, ask: Ask, asked: Asked) -> ReplayOrder:
    given = ask.given
    return ReplayOrder(
        asked=asked,
        challenge=ask.draw.challenge,
        note=ask.draw.note,
        expectation=choice.expectation,
        record=given.record,
        owner_log=given.owner_log,
        data=given.data,
        salt=read_salt(given.salt),
        validation=given.validation,
        validation_salt=read_salt(given.validation_salt or given.salt),
        checkpoints=ask.checkpoints,
        checkpoint_key=read_salt(ask.checkpoint_key),
        bisect=ask.bisect,
        elsewhere=ask.elsewhere,
    )


async def _executed(
    screen: Screen, places: Places, choice: NodeChoice, order: ReplayOrder
) -> ReplayFile:
    http = make_node_client()
    trust = TrustPolicy(choice.expectation, choice.roots)
    held = HeldNode(choice.url, trust, http, places.clock, places.entropy)
    shown = -1

    def told(executed: int, steps: int) -> None:
        nonlocal shown
        if executed != shown:
            shown = executed
            screen.say(f"{executed} of {steps} steps executed")

    try:
        return await replay_elsewhere(
            # Its files are nobody's else: the token is drawn for this replay.
            TrainingNode(held, token=places.entropy.token(_TOKEN_BYTES).hex()),
            order,
            entropy=places.entropy,
            sleeper=SystemSleeper(),
            told=told,
        )
    finally:
        await held.close()
        await http.aclose()
