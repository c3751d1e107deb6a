"""The two programs of Ray that a seat runs, with command lines of ours: `gcs_server` and `raylet`.

docs/protocols/training-ranks.md 6.4. Ray's own starter would start more: a dashboard, monitors, an
agent that installs what it is told and listens without TLS. A raylet insists on two agents; it is
given ones that do nothing and listen nowhere. Everything it writes is in a folder in memory.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import ray
from ray._common.usage import usage_lib
from ray._private import ray_constants, services
from ray._raylet import GcsClient
from ray.exceptions import RayError

from confide.errors import Unavailable
from confide.rays.order import STORE_BYTES, seat_resource

if TYPE_CHECKING:
    from confide.rays.order import ClusterOrder

__all__ = ["Daemons"]

_TICK_SECONDS: Final = 0.1
# What an agent without a port tells.
_NO_PORT: Final = "-1"
_AGENT_PORTS: Final = (
    "metrics_agent",
    "metrics_export",
    "dashboard_agent_listen",
    "runtime_env_agent",
)
_STORE_PLACE: Final = "/dev/shm"  # noqa: S108 - memory; files there have no name once they are open
# Of the ports of a seat that names its first one; that itself is the cluster's, at seat 0.
_MANAGER, _OBJECTS, _WORKERS = 1, 2, (3, 4)
_CONFIG: Final = {"automatic_object_spilling_enabled": False}


class Daemons:
    """What runs for one seat. They end with this process."""

    def __init__(self, order: ClusterOrder) -> None:
        """Start nothing yet."""
        self._order = order
        self._node = ray.NodeID.from_random().hex()
        # Ray opens its folder of temporary files to everybody: it is inside of ours.
        self._temporary = Path(order.folder) / "ray"
        self._session = self._temporary / "session"
        self._logs = self._session / "logs"
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        for folder in (self._logs, self._session / "sockets", self._session / "resources"):
            folder.mkdir(mode=0o700, parents=True)

    @property
    def ended(self) -> str:
        """The name of a program that has ended, empty while all run."""
        gone = (name for name, each in self._running.items() if each.poll() is not None)
        return next(gone, "")

    def require_running(self) -> None:
        """Raise `Unavailable` where a program has ended."""
        if name := self.ended:
            raise Unavailable(f"{name} ended")

    def start(self) -> None:
        """Start them. Raises `Unavailable` where seat 0 cannot be reached in time."""
        if self._order.seat == 0:
            self._start_gcs()
        client = self._client()
        if self._order.seat == 0:
            # Told to nobody: drivers and raylets compare versions with it.
            usage_lib.put_cluster_metadata(client, ray_init_cluster=False)
            client.internal_kv_put(
                b"session_name",
                self._session.name.encode(),
                True,  # noqa: FBT003 - their signature
                ray_constants.KV_NAMESPACE_SESSION,
            )
        self._start_raylet(client.cluster_id.hex())

    def _start_gcs(self) -> None:
        order = self._order
        config = base64.b64encode(json.dumps(_CONFIG).encode()).decode()
        self._run(
            "gcs_server",
            services.GCS_SERVER_EXECUTABLE,
            f"--log_dir={self._logs}",
            f"--config_list={config}",
            f"--gcs_server_port={order.head[1]}",
            f"--metrics-agent-port={_NO_PORT}",
            f"--node-ip-address={order.host}",
            f"--session-name={self._session.name}",
            f"--ray-commit={ray.__commit__}",
            f"--session-dir={self._session}",
            f"--node-id={self._node}",
        )

    def _client(self) -> GcsClient:
        """Return a client of the cluster, which may not be up yet."""
        deadline = time.monotonic() + self._order.patience_seconds
        while True:
            try:
                return GcsClient(address=self._order.address, cluster_id=None)
            except RayError as error:
                self.require_running()
                if time.monotonic() > deadline:
                    raise Unavailable("seat 0 of the cluster does not answer") from error
            time.sleep(_TICK_SECONDS)

    def _start_raylet(self, cluster: str) -> None:
        order, session = self._order, self._session
        for name in _AGENT_PORTS:
            (session / f"{name}_port_{self._node}").write_text(_NO_PORT)
        store, raylet = session / "sockets" / "store", session / "sockets" / "raylet"
        common = (
            f"--gcs-address={order.address}",
            f"--session-name={session.name}",
            f"--cluster-id={cluster}",
        )
        workers = Path(ray.__file__).parent / "_private" / "workers"
        worker = (
            sys.executable,
            workers / "setup_worker.py",
            workers / "default_worker.py",
            f"--node-ip-address={order.host}",
            "--node-manager-port=RAY_NODE_MANAGER_PORT_PLACEHOLDER",
            f"--object-store-name={store}",
            f"--raylet-name={raylet}",
            "--redis-address=",
            f"--metrics-agent-port={_NO_PORT}",
            "--runtime-env-agent-port=0",
            f"--temp-dir={self._temporary}",
            "--webui=",
            *common,
            "RAY_WORKER_DYNAMIC_OPTION_PLACEHOLDER",
        )
        idle = (sys.executable, "-I", "-S", Path(__file__).with_name("idle.py"))
        resources = {
            "CPU": 0,
            "object_store_memory": STORE_BYTES,
            f"node:{order.host}": 1,
            seat_resource(order.seat): 1,
        }
        self._run(
            "raylet",
            services.RAYLET_EXECUTABLE,
            f"--raylet_socket_name={raylet}",
            f"--store_socket_name={store}",
            *self._ports(),
            f"--node_id={self._node}",
            f"--node_ip_address={order.host}",
            "--maximum_startup_concurrency=1",
            "--num_prestart_python_workers=0",
            "--static_resource_list="
            + ",".join(f"{name},{count}" for name, count in resources.items()),
            f"--python_worker_command={_line(worker)}",
            "--java_worker_command=",
            "--cpp_worker_command=",
            f"--native_library_path={services.DEFAULT_NATIVE_LIBRARY_PATH}",
            f"--temp_dir={self._temporary}",
            f"--session_dir={session}",
            f"--log_dir={self._logs}",
            f"--resource_dir={session / 'resources'}",
            "--metrics-agent-port=0",
            "--metrics_export_port=0",
            "--runtime_env_agent_port=0",
            f"--object_store_memory={STORE_BYTES}",
            f"--plasma_directory={_STORE_PLACE}",
            f"--fallback_directory={session}",
            "--ray-debugger-external=0",
            "--labels=",
            *common,
            f"--dashboard_agent_command={_line(idle)}",
            f"--runtime_env_agent_command={_line(idle)}",
            *(("--head",) if order.seat == 0 else ()),
        )

    def _ports(self) -> tuple[str, ...]:
        port = self._order.port
        if not port:
            return (
                "--node_manager_port=0",
                "--object_manager_port=0",
                "--min_worker_port=0",
                "--max_worker_port=0",
            )
        return (
            f"--node_manager_port={port + _MANAGER}",
            f"--object_manager_port={port + _OBJECTS}",
            f"--worker_port_list={','.join(str(port + each) for each in _WORKERS)}",
        )

    def _run(self, name: str, program: str, *arguments: str) -> None:
        tied = Path(__file__).with_name("tied.py")
        with (self._logs / f"{name}.txt").open("wb") as log:
            self._running[name] = subprocess.Popen(  # noqa: S603 - Ray's own programs
                (sys.executable, "-I", "-S", tied, str(os.getpid()), program, *arguments),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )


def _line(words: tuple[str | Path, ...]) -> str:
    return subprocess.list2cmdline(tuple(map(str, words)))
