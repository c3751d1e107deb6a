"""The local, SIMULATED deployment as a client sees it: its model, reference values, places.

Nothing here is trusted because it is local: the reference values are computed from the same inputs
as honest nodes measure, and a node has to prove them like any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from confide.adapters.upstream_serve import BUNDLED_WEIGHTS
from confide.adapters.weights_dir import measure_weights
from confide.appraisal.nvidia_policy import AllowedVersions
from confide.client.expect import LocalReference
from confide.errors import ConfigurationError
from confide.simulator.machine import make_gpus, make_platform

if TYPE_CHECKING:
    from datetime import datetime

    from confide.appraisal.nvidia_policy import VersionRule
    from confide.trust.roots import Roots

__all__ = [
    "RunFolder",
    "bundled_weights",
    "example_folder",
    "local_reference",
    "make_run_folder",
]

_NEEDED = ("config.json", "model.safetensors")


def bundled_weights() -> Path | None:
    """Return the directory of the bundled model, None where this installation has none."""
    found = all((BUNDLED_WEIGHTS / name).is_file() for name in _NEEDED)
    return BUNDLED_WEIGHTS if found else None


def example_folder(name: str) -> Path:
    """
    Return the folder of the example `name`, which only a source checkout has.

    Raises `ConfigurationError` elsewhere.
    """
    folder = Path(__file__).parents[3] / "examples" / name
    if not (folder / "agent.toml").is_file():
        raise ConfigurationError(
            f"the example {name} is not beside this installation: clone the repository and run "
            "make demo there, or run your own agent folder with confide run"
        )
    return folder


def local_reference(
    *,
    seed: bytes,
    roots: Roots,
    software: bytes,
    kernel: str,
    model: str,
    weights: Path | None,
    now: datetime,
) -> LocalReference:
    """
    Return what honest local nodes measure.

    `software` and `kernel` are those of this machine; `weights` None means a model served
    elsewhere, whose weights nobody measures.
    """
    gpu = make_gpus(seed, now, ()).policy()
    return LocalReference(
        roots=roots,
        software=software,
        kernel=kernel,
        mrseam=make_platform(seed, now, ()).mr_seam,
        gpu=gpu,
        gpu_drivers=_versions(gpu.driver),
        gpu_vbios=_versions(gpu.vbios),
        model=model,
        weights="" if weights is None else measure_weights(weights).digest.hex(),
    )


def _versions(rule: VersionRule) -> tuple[str, ...]:
    if isinstance(rule, AllowedVersions):
        return rule.versions
    raise TypeError("the simulator names exact versions")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where one run keeps what it leaves: Expectation, receipt and, by default, outputs."""

    path: Path

    @property
    def expectation(self) -> Path:
        """The Expectation of the run."""
        return self.path / "expectation.json"

    @property
    def receipt(self) -> Path:
        """The receipt of the run."""
        return self.path / "receipt.json"

    @property
    def output(self) -> Path:
        """Where outputs go unless the caller names another place."""
        return self.path / "output"


def make_run_folder(runs: Path, *, name: str, now: datetime, token: bytes) -> RunFolder:
    """Make the folder of a run below `runs`, named by time, agent and two random bytes."""
    path = runs / f"{now:%Y%m%dT%H%M%SZ}-{name}-{token[:2].hex()}"
    path.mkdir(mode=0o700, parents=True)
    return RunFolder(path)
