"""What a node tells the process that holds its part of a Ray cluster, and where Ray finds things.

docs/protocols/training-ranks.md 6.3. One line of JSON and four open files. Imports no Ray.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.errors import Reason
from confide.training.shares import MAX_SEATS
from confide.wire.json import Members, jcs, parse_json

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "LINKS",
    "LINKS_NAME",
    "STORE_BYTES",
    "ClusterOrder",
    "parse_cluster_order",
    "ray_environment",
    "seat_resource",
]

# The socket of a node in its folder, and the variable by which an actor finds it.
LINKS_NAME: Final = "links"
LINKS: Final = "CONFIDE_LINKS"
# Above what Ray takes at least; `carrier` has a few pieces under way at a time, whatever P is.
STORE_BYTES: Final = 128 * 1024 * 1024
_WHAT: Final = "order of a cluster"
_MAX_PATH: Final = 64


@dataclass(frozen=True, slots=True)
class ClusterOrder:
    """
    One seat of a cluster: its number of how many, its address, and where seat 0 is.

    `port` is the first of those that this seat opens, 0 for any. `folder` is its own, in memory.
    """

    seat: int
    seats: int
    host: str
    port: int
    head: tuple[str, int]
    folder: str
    patience_seconds: int

    def encode(self) -> bytes:
        """Return the line, without its end."""
        return jcs(
            {
                "seat": self.seat,
                "seats": self.seats,
                "host": self.host,
                "port": self.port,
                "head": {"host": self.head[0], "port": self.head[1]},
                "folder": self.folder,
                "patience": self.patience_seconds,
            }
        )

    @property
    def address(self) -> str:
        """Where the cluster is found."""
        host, port = self.head
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_cluster_order(raw: bytes) -> ClusterOrder:
    """Read a line. Raises `FormatError`."""
    reason = Reason.TRAINING_FORMAT
    members = Members(parse_json(raw, what=_WHAT, reason=reason), what=_WHAT, reason=reason)
    head = members.members("head")
    found = ClusterOrder(
        seat=members.integer("seat", high=MAX_SEATS - 1),
        seats=members.integer("seats", low=2, high=MAX_SEATS),
        host=members.text("host", max_chars=_MAX_PATH),
        port=members.integer("port", high=65535),
        head=(head.text("host", max_chars=_MAX_PATH), head.integer("port", low=1, high=65535)),
        folder=members.text("folder", max_chars=_MAX_PATH),
        patience_seconds=members.integer("patience", low=1),
    )
    head.end()
    members.end()
    return found


def seat_resource(seat: int) -> str:
    """Return the name of what seat `seat` alone has one of."""
    return f"seat_{seat}"


def ray_environment(
    folder: Path, *, certificate: str, key: str, authority: str, token: str
) -> dict[str, str]:
    """
    Return the environment of everything that is Ray here: made from nothing.

    The four are paths of memory files. What is off is listed in 6.4.
    """
    return {
        "HOME": "/nonexistent",
        "LANG": "C.UTF-8",
        "PATH": "/usr/bin:/bin",
        "TMPDIR": str(folder),
        LINKS: str(folder / LINKS_NAME),
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": certificate,
        "RAY_TLS_SERVER_KEY": key,
        "RAY_TLS_CA_CERT": authority,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": token,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DISABLE_IMPORT_WARNING": "1",
        "RAY_BACKEND_LOG_LEVEL": "warning",
        "RAY_ROTATION_MAX_BYTES": str(1 << 20),
        "RAY_ROTATION_BACKUP_COUNT": "1",
        "RAY_automatic_object_spilling_enabled": "0",
        "RAY_enable_metrics_collection": "0",
        "RAY_enable_timeline": "0",
        "RAY_event_stats": "0",
        "RAY_enable_core_worker_task_event_to_gcs": "0",
        "RAY_emit_event_to_log_file": "0",
        "RAY_enable_worker_prestart": "0",
        "RAY_memory_monitor_refresh_ms": "0",
        # A machine that answers nothing is given up after half a minute, one that refuses sooner.
        "RAY_health_check_initial_delay_ms": "2000",
        "RAY_health_check_period_ms": "2000",
        "RAY_health_check_timeout_ms": "10000",
        "RAY_health_check_failure_threshold": "3",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "30",
    }
