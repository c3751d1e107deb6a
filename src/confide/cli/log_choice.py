"""Which log counts for a verb, and who says so: options, files, the log of this machine."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from confide.cli.places import read_bounded
from confide.client.finality import LogChoice
from confide.errors import ConfigurationError
from confide.wire.tlog_policy import parse_log_policy

if TYPE_CHECKING:
    from confide.engines.local import LocalEngine

__all__ = [
    "LogOption",
    "LogPolicyOption",
    "LogWaitOption",
    "NoLogOption",
    "local_choice",
    "named_choice",
    "read_choice",
    "require_log",
]

LogOption = Annotated[
    str | None,
    typer.Option("--log", metavar="URL", help="Log for the receipt, with --node. Default: local."),
]
LogPolicyOption = Annotated[
    Path | None,
    typer.Option("--log-policy", help="Policy of --log: log, witnesses, quorum (tlog-policy)."),
]
NoLogOption = Annotated[
    bool, typer.Option("--no-log", help="With --node: leave the receipt out of any log.")
]
LogWaitOption = Annotated[
    float,
    typer.Option("--log-wait", min=0.0, help="Seconds to wait for the log and its witnesses."),
]


def read_choice(url: str, policy_file: Path) -> LogChoice:
    """Return the log at `url` under the policy in `policy_file`. Raises `FormatError`."""
    raw = read_bounded(policy_file, "log policy")
    digest = hashlib.sha256(raw).digest()
    return LogChoice(url, parse_log_policy(raw), digest, policy_file.absolute())


def local_choice(engine: LocalEngine, url: str) -> LogChoice:
    """Return the log of this machine, which answers at `url`."""
    return read_choice(url, engine.log_policy())


def require_log(
    node: str | None, log: str | None, log_policy: Path | None, *, no_log: bool
) -> None:
    """Raise `ConfigurationError` where it is not clear that, and where, a receipt is logged."""
    if node is None:
        if log is not None or log_policy is not None or no_log:
            raise ConfigurationError(
                "--log, --log-policy and --no-log go with --node: local nodes have a local log"
            )
        return
    if no_log and (log is not None or log_policy is not None):
        raise ConfigurationError("--no-log and --log contradict each other")
    if not no_log and (log is None or log_policy is None):
        raise ConfigurationError(
            "--node needs --log and --log-policy: a receipt that no log has can be denied. "
            "--no-log says that it may be"
        )


def named_choice(log: str | None, log_policy: Path | None) -> LogChoice | None:
    """Return the log that both options name, None where they name none."""
    return None if log is None or log_policy is None else read_choice(log, log_policy)
