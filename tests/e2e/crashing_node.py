"""A model node that breaks in every place where Python says what broke, prompt in hand.

The node, its channel, its server and the way its process is run are the real ones; the engine
behind it raises what no code of ours foresees, with the request in its text. `loud` runs the same
without `run_node`, to show that there is something to be found.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "simulators"))

from nodes import WEIGHTS, SimulatedNode

from confide.cli.foreground import run_node
from confide.inference.models import ServedModel
from confide.inference.plan import EngineRoutes, RequestLimits
from confide.node.app import NodeApp
from confide.node.identity import NodeIdentity
from confide.node.model import ModelNode, ModelNodePorts
from confide.node.serve import serve

MODEL = "support-notes"
ROUTES = EngineRoutes(chat=True, completions=True, responses=True, models=False)


class _Dying:
    def __init__(self, text: str) -> None:
        self.text = text

    def __del__(self) -> None:
        raise KeyError(self.text)


class _Unforeseen:
    """An engine that breaks what calls it, in all the ways there are."""

    async def forward(self, path: str, body: bytes, **_options: Any) -> Any:
        del path
        text = body.decode("latin-1")
        logging.getLogger("a.library").error("could not send %s", text)
        logging.getLogger("asyncio").critical("lost %r", body)
        self.lost = asyncio.ensure_future(self._raise(text))
        await asyncio.wait([self.lost])
        del self.lost
        thread = threading.Thread(target=self._break, args=(text,))
        thread.start()
        thread.join()
        _Dying(text)
        asyncio.get_running_loop().call_soon(self._break, text)
        await asyncio.sleep(0)
        raise RuntimeError(text)

    async def probe(self) -> EngineRoutes:
        return ROUTES

    @staticmethod
    async def _raise(text: str) -> None:
        raise LookupError(text)

    @staticmethod
    def _break(text: str) -> None:
        raise ValueError(text)


async def _serve(port: int) -> None:
    simulated = SimulatedNode("model")
    await simulated.boot()
    clock, entropy = simulated.clock, simulated.entropy
    identity = NodeIdentity(
        simulated.keys, simulated.attester, clock=clock, entropy=entropy, simulated=True
    )
    served = ServedModel(
        name=MODEL,
        weights_digest="11" * 32,
        manifest_digest=WEIGHTS.hex(),
        upstream_name=MODEL,
        created=1,
    )
    ports = ModelNodePorts(
        identity=identity,
        upstream=_Unforeseen(),
        routes=ROUTES,
        served=served,
        weights=WEIGHTS,
        clock=clock,
        entropy=entropy,
        limits=RequestLimits(),
    )
    app = NodeApp(identity, ModelNode(ports))
    await serve(app, host="127.0.0.1", port=port, idle_seconds=None)


def main() -> None:
    port, how = int(sys.argv[1]), sys.argv[2]
    if how == "loud":
        asyncio.run(_serve(port))
    else:
        run_node(_serve(port))


if __name__ == "__main__":
    main()
