"""One seat of a cluster, from its start to its end; seat 0 also drives it.

docs/protocols/training-ranks.md 6.3 to 6.5. The cluster is the supervisor too: where an actor, a
program or a machine is lost, `hold_seat` ends, and everything of this seat with it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import ray
from ray.exceptions import RayError
from ray.job_config import JobConfig

from confide.errors import Unavailable
from confide.rays.carrier import TAKES, Carrier
from confide.rays.daemons import Daemons
from confide.rays.order import seat_resource

if TYPE_CHECKING:
    from confide.rays.order import ClusterOrder

__all__ = ["hold_seat"]

_TICK_SECONDS: Final = 0.2
# With a search path, Ray imports an actor by its name and ships no code (6.5); nothing is there.
_NO_CODE: Final = "/nonexistent"
_NAMESPACE: Final = "confide"


def hold_seat(order: ClusterOrder) -> str:
    """Run this seat's part until it ends; return why, in words."""
    daemons = Daemons(order)
    try:
        daemons.start()
        if order.seat == 0:
            _drive(order, daemons)
            return "the links were closed"
        while not daemons.ended:
            time.sleep(_TICK_SECONDS)
    except Unavailable as error:
        return str(error)
    except RayError:
        return "a seat of the cluster was lost"
    return f"{daemons.ended} ended"


def _drive(order: ClusterOrder, daemons: Daemons) -> None:
    """Place an actor in each seat, and follow them until all links are closed."""
    ray.init(
        address=order.address,
        _node_ip_address=order.host,
        job_config=JobConfig(code_search_path=[_NO_CODE]),
        log_to_driver=False,
        configure_logging=False,
        namespace=_NAMESPACE,
    )
    names = [seat_resource(seat) for seat in range(order.seats)]
    deadline = time.monotonic() + order.patience_seconds
    while not set(names) <= ray.cluster_resources().keys():
        daemons.require_running()
        if time.monotonic() > deadline:
            raise Unavailable("not all seats came into the cluster")
        time.sleep(_TICK_SECONDS)
    kind: Any = ray.remote(
        num_cpus=0, max_restarts=0, max_task_retries=0, concurrency_groups={TAKES: 1}
    )(Carrier)
    actors = [kind.options(resources={name: 1}).remote() for name in names]
    carrying = [
        actor.carry.remote(after)
        for actor, after in zip(actors, [*actors[1:], actors[0]], strict=True)
    ]
    try:
        while carrying:
            daemons.require_running()
            done, carrying = ray.wait(carrying, num_returns=1, timeout=_TICK_SECONDS)
            ray.get(done)
    except RayError:
        # The links of the others end with their actors, not when they miss this seat.
        for actor in actors:
            ray.kill(actor)
        raise
