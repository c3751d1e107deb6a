"""What an agent gets from a key broker: which one, which secrets, whether a state. Pure.

Clause: docs/protocols/state.md §1; names are those of broker.md 1.1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from confide.wire.json import Members

__all__ = [
    "MAX_SECRETS",
    "NO_BROKER",
    "RESERVED_VARIABLES",
    "BrokerSpec",
    "SecretUse",
    "is_resource_part",
    "parse_broker_spec",
    "parse_secret_uses",
    "require_state_name",
]

MAX_SECRETS: Final = 64
# From: docs/protocols/broker.md 1.1.
_PART = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,127}\Z")
# What the node sets itself (agents/environment.py), and what decides which code a process loads.
RESERVED_VARIABLES: Final = frozenset(
    {
        "ANONYMIZED_TELEMETRY",
        "CONFIDE_MODEL",
        "DO_NOT_TRACK",
        "HF_HUB_DISABLE_TELEMETRY",
        "HF_HUB_OFFLINE",
        "HOME",
        "HTTPS_PROXY",
        "HTTP_PROXY",
        "LANG",
        "LANGCHAIN_TRACING_V2",
        "LANGSMITH_TRACING",
        "LOGFIRE_SEND_TO_LOGFIRE",
        "NO_PROXY",
        "OPENAI_AGENTS_DISABLE_TRACING",
        "OPENAI_API_BASE",
        "OPENAI_API_KEY",
        "OPENAI_BASE_URL",
        "OTEL_SDK_DISABLED",
        "PATH",
    }
)
_RESERVED_PREFIXES: Final = ("LD_", "PYTHON")


def is_resource_part(text: str) -> bool:
    """Whether `text` can be one part of a resource's name (broker.md 1.1)."""
    return _PART.match(text) is not None


@dataclass(frozen=True, slots=True)
class SecretUse:
    """One secret and where the agent finds it: a file below /run/secrets, or `variable`."""

    name: str
    variable: str | None

    def __str__(self) -> str:
        return self.name if self.variable is None else f"{self.variable}={self.name}"


@dataclass(frozen=True, slots=True)
class BrokerSpec:
    """
    The broker by its Ed25519 `key` (hex), and what the agent gets from it.

    `secrets` are written as `name` or `VARIABLE=name`. Empty in every field: no broker is asked.
    """

    key: str
    repository: str
    secrets: tuple[str, ...]
    state: bool

    @property
    def wanted(self) -> bool:
        """Whether a run needs the broker at all."""
        return bool(self.secrets) or self.state

    @property
    def uses(self) -> tuple[SecretUse, ...]:
        """The secrets with the places where the agent finds them."""
        return tuple(_use(text) for text in self.secrets)

    def resource(self, name: str) -> str:
        """Return the resource of the secret `name`."""
        return f"{self.repository}/secret/{name}"

    def state_resource(self, agent: str) -> str:
        """Return the resource of the state of the Expectation named `agent`."""
        return f"{self.repository}/state/{agent}"


NO_BROKER: Final = BrokerSpec(key="", repository="", secrets=(), state=False)


def _use(text: str) -> SecretUse:
    variable, equals, name = text.rpartition("=")
    return SecretUse(name, variable if equals else None)


def parse_secret_uses(members: Members, name: str) -> tuple[SecretUse, ...]:
    """
    Read the member `name`, a list of secrets.

    No secret and no variable stands twice; a variable is none that the node sets or that decides
    which code is loaded. Raises the `FormatError` of `members`.
    """
    uses = tuple(_use(text) for text in members.texts(name, max_items=MAX_SECRETS))
    for use in uses:
        if not is_resource_part(use.name):
            members.refuse(f"{name} holds something that is not the name of a secret")
        if use.variable is not None:
            _require_variable(members, name, use.variable)
    names = [use.name for use in uses]
    variables = [use.variable for use in uses if use.variable is not None]
    if len(set(names)) < len(names) or len(set(variables)) < len(variables):
        members.refuse(f"{name} holds a secret or a variable twice")
    return uses


def _require_variable(members: Members, name: str, variable: str) -> None:
    if not _VARIABLE.match(variable):
        members.refuse(f"{name} holds a variable that is not of A-Z, 0-9 and _")
    if variable in RESERVED_VARIABLES or variable.startswith(_RESERVED_PREFIXES):
        members.refuse(f"{name} holds a variable that is not the agent's to set")


def parse_broker_spec(top: Members, *, complete: bool) -> BrokerSpec:
    """Read the member `broker` of `top`; unless `complete`, what is absent is empty."""
    if not complete and not top.has("broker"):
        return NO_BROKER
    members = top.members("broker")

    def given(name: str) -> bool:
        return complete or members.has(name)

    uses = parse_secret_uses(members, "secrets") if given("secrets") else ()
    spec = BrokerSpec(
        key=members.text("key") if given("key") else "",
        repository=members.text("repository") if given("repository") else "",
        secrets=tuple(str(use) for use in uses),
        state=members.boolean("state") if given("state") else False,
    )
    if spec.wanted:
        if len(spec.key) != 64 or spec.key.strip("0123456789abcdef"):
            members.refuse("key is not 32 bytes of lower-case hex")
        if not is_resource_part(spec.repository):
            members.refuse("repository is not the name of one")
    elif spec != NO_BROKER:
        members.refuse("key or repository of a broker that is asked for nothing")
    members.end()
    return spec


def require_state_name(top: Members, name: str, spec: BrokerSpec) -> None:
    """Refuse an Expectation with a state whose `name` cannot be that of a resource."""
    if spec.state and not is_resource_part(name):
        top.refuse("name has to be lower-case letters, digits, '.', '_' or '-' where it has state")
