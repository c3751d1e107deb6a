"""The environment an agent starts with: one table. Pure.

From: reference agents.md §2 and §3. Telemetry switches are a courtesy to the reader of the
transcript; what keeps data inside is the network namespace, where every other way is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from confide.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "MODEL_PORT",
    "PROXY_PORT",
    "agent_environment",
    "require_variable",
    "training_environment",
]

# Inside the container's own network namespace: these can clash with nothing.
MODEL_PORT: Final = 8080
PROXY_PORT: Final = 3128

# An engine reads variables from a file, line by line; Podman's lines end at 64 KiB.
_VARIABLE_BYTES: Final = 32 * 1024

_FIXED: Final[Mapping[str, str]] = {
    "HOME": "/tmp",  # noqa: S108 - the only writable place besides /output
    "LANG": "C.UTF-8",
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    # openai-agents sends traces to its vendor by default
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "LANGSMITH_TRACING": "false",
    "LANGCHAIN_TRACING_V2": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "OTEL_SDK_DISABLED": "true",
    "LOGFIRE_SEND_TO_LOGFIRE": "false",
    "ANONYMIZED_TELEMETRY": "false",
    "DO_NOT_TRACK": "1",
}

# Libraries that train look for data and report on themselves elsewhere.
_OFFLINE: Final[Mapping[str, str]] = {
    "HF_HOME": "/tmp/huggingface",  # noqa: S108 - inside the container
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "WANDB_MODE": "disabled",
}


def agent_environment(*, token: str, model: str) -> tuple[tuple[str, str], ...]:
    """
    Return the variables of one run, sorted by name.

    `token` is the per-run key of the model endpoint: worthless outside this run's namespace.
    `model` is the public model name, so that an agent need not hard-wire one.
    """
    endpoint = f"http://127.0.0.1:{MODEL_PORT}/v1"
    proxy = f"http://127.0.0.1:{PROXY_PORT}"
    here = "127.0.0.1,localhost"
    variables = {
        **_FIXED,
        "OPENAI_BASE_URL": endpoint,
        # langchain-openai reads this one first
        "OPENAI_API_BASE": endpoint,
        "OPENAI_API_KEY": token,
        "CONFIDE_MODEL": model,
        "HTTP_PROXY": proxy,
        "HTTPS_PROXY": proxy,
        "http_proxy": proxy,
        "https_proxy": proxy,
        "NO_PROXY": here,
        "no_proxy": here,
    }
    return tuple(sorted(variables.items()))


def training_environment(
    own: Mapping[str, str], *, places: Mapping[str, str]
) -> tuple[tuple[str, str], ...]:
    """
    Return the variables of a training image, sorted by name: docs/protocols/training-image.md 2.5.

    `own` are the owner's, which stand over ours; `places` are paths by their name in `train.toml`.
    """
    found = {f"CONFIDE_{name.upper()}": path for name, path in places.items()}
    return tuple(sorted({**_FIXED, **_OFFLINE, **own, **found}.items()))


def require_variable(name: str, value: str) -> None:
    """Raise `ConfigurationError` for a variable that no environment, or no engine, can hold."""
    if not name or "=" in name or any(char in name + value for char in "\0\r\n"):
        raise ConfigurationError("an environment variable holds a line break or a NUL")
    if len(value.encode()) > _VARIABLE_BYTES:
        raise ConfigurationError(f"an environment variable above {_VARIABLE_BYTES} bytes")
