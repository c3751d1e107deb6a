"""Which engine carries the links between seats, and opening them: docs/protocols/training-ranks.md.

§3 for the ring, §6 for Ray. A node offers Ray where it was started so; a job asks for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from typing import TYPE_CHECKING, Protocol

from confide.adapters.rank_tls import SeatLinks
from confide.errors import FormatError, Reason
from confide.inference.plan import refuse
from confide.rays.links import RayLinks, RaySeat
from confide.training.shares import ranks_for

if TYPE_CHECKING:
    import socket
    from types import TracebackType
    from typing import Self

    from confide.adapters.rank_tls import Beside, SeatIdentity
    from confide.node.seat_messages import Cluster
    from confide.node.train_entry import TrainPorts
    from confide.training.job_request import JobRequest

__all__ = ["LinkOrder", "Links", "open_links", "require_engine", "seat_address"]

_CODE = "engine_unavailable"
_PARAM = "confide.engine"
# 127.0.0.1 Ray takes for another address of the machine; the other is nobody's.
_NOWHERE = frozenset({"0.0.0.0", "127.0.0.1"})  # noqa: S104 - refused


class Links(Protocol):
    """The two links of one seat, as `SeatLinks` and `RayLinks` are; a context manager."""

    @property
    def outer(self) -> tuple[socket.socket, socket.socket]:
        """The links to hand to ranks that have none yet."""
        ...

    @property
    def failures(self) -> tuple[str, ...]:
        """What ended them, as far as something did."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkOrder:
    """
    What the links of seat `seat` of `seats` need.

    `listener` is the port that was told to others, and closed here. `cluster` is where Ray is
    found, None for the ring; then `host` and `port` are this seat's, as `LinkPlace` has them.
    """

    identity: SeatIdentity
    beside: Beside
    listener: socket.socket
    seat: int
    seats: int
    host: str
    port: int
    cluster: Cluster | None
    patience_seconds: float
    inner: tuple[socket.socket, socket.socket] | None = None


def open_links(order: LinkOrder) -> Links:
    """Open the links of a seat. Raises `OSError`, and `Unavailable` where Ray cannot start."""
    if order.cluster is None:
        return SeatLinks(
            order.identity,
            order.beside,
            listener=order.listener,
            inner=order.inner,
            patience_seconds=order.patience_seconds,
        )
    # Ray binds the port itself: that of seat 0 is the cluster's.
    order.listener.close()
    place = RaySeat(
        seat=order.seat,
        seats=order.seats,
        host=order.host,
        port=order.port,
        head=order.cluster.address,
        token=order.cluster.token,
    )
    return RayLinks(
        order.identity, place, inner=order.inner, patience_seconds=order.patience_seconds
    )


def seat_address(host: str) -> IPv4Address:
    """Return the address that a certificate for Ray names. Raises `FormatError` for none."""
    try:
        found = IPv4Address(host)
    except AddressValueError:
        found = None
    if found is None or str(found) in _NOWHERE:
        clause = "docs/protocols/training-ranks.md#6.3"
        what = "a seat of a Ray cluster is not at an IPv4 address that others reach"
        raise FormatError(what, reason=Reason.TRAINING_FORMAT, clause=clause)
    return found


def require_engine(request: JobRequest, ports: TrainPorts) -> None:
    """Require that this node has the engine that a job asks for, and nodes that it would link."""
    if request.engine == "ring":
        return
    party = ports.party
    if party is None or request.engine not in party.link.engines:
        words = (
            "This node does not offer Ray. Leave the engine out, or have the node started with "
            "--ray and --seat."
        )
        refuse(_CODE, words, param=_PARAM)
    if request.handed is not None:
        words = "A job that goes on from another node has one rank: there is nothing to link."
        refuse(_CODE, words, param=_PARAM)
    if ranks_for(request.steps, ports.ranks + party.ranks) <= ports.ranks:
        words = (
            f"Ray links nodes, and this job needs one: give it more than {ports.ranks} "
            "gradient_accumulation_steps, or leave the engine out."
        )
        refuse(_CODE, words, param=_PARAM)
