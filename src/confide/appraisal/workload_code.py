"""What the words of a service start besides its image: docs/protocols/workload.md 3 and 5.

An image is named by digest, and the document still says which program in it runs, with which
words and which environment. What can be seen there is seen; what a program does is not.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from confide.appraisal.claim_names import ClaimName
from confide.appraisal.workload_types import Observation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from confide.wire.json import JsonValue

__all__ = ["SHELLS", "observe_code", "observe_environment"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DOC: Final = "docs/protocols/workload.md"
_COMPLETE, _ACCESS = ClaimName.WORKLOAD_COMPLETE, ClaimName.OPERATOR_ACCESS
# Remote shells, as a word of a path, a name or a command.
SHELLS: Final = re.compile(
    r"(?:^|[/_.\s'\";&|-])"
    r"(?:sshd|openssh(?:-server)?|dropbear|ttyd|gotty|wetty|webssh|code-server|tmate)"
    r"(?:$|[:/_.\s'\";&|-])"
)
_WORD: Final = r"(?:^|[\s/'\"`;&|(])"
# Programs that fetch, and what they are told, in any shell.
_FETCHES: Final = re.compile(
    _WORD + r"(?:curl|wget|aria2c|scp|rsync|ncat|socat|git\s+(?:clone|pull|fetch)"
    r"|(?:pip3?|uv|npm|pnpm|yarn|gem|cargo|go|apt|apt-get|apk|dnf|yum|conda|mamba)"
    r"(?:\s{1,8}-\S{0,64}){0,8}\s{1,8}(?:pip\s+)?(?:install|add|get|i|ci|download|sync)"
    r"|npx|uvx|pipx|bunx|docker|nerdctl|podman|ctr)(?:$|[\s'\"`;&|)])"
)
_ADDRESS: Final = re.compile(
    r"(?:https?|ftp|git|ssh)://(?!(?:localhost|127\.0\.0\.1|\[::1\])(?:[:/\s'\"]|$))"
)
_INTERPRETERS: Final = _words("sh bash dash ash zsh ksh python python3 perl node ruby php")
# Values that loaders, shells and interpreters take code from.
_CODE_NAMES: Final = _words(
    "LD_PRELOAD LD_LIBRARY_PATH LD_AUDIT PATH ENV BASH_ENV PROMPT_COMMAND IFS SHELLOPTS "
    "PYTHONPATH PYTHONSTARTUP PYTHONHOME PYTHONUSERBASE NODE_OPTIONS NODE_PATH PERL5OPT PERL5LIB "
    "RUBYOPT RUBYLIB JAVA_TOOL_OPTIONS JDK_JAVA_OPTIONS GIT_SSH GIT_SSH_COMMAND DOCKER_HOST "
    "CONTAINER_HOST PIP_INDEX_URL PIP_EXTRA_INDEX_URL UV_INDEX_URL NPM_CONFIG_REGISTRY"
)


def _see(
    claim: ClaimName, place: str, text: str, number: int, *, contradicts: bool = False
) -> Observation:
    return Observation(claim, place, text, f"{_DOC}#{number}", contradicts)


def _interpolated(text: str) -> bool:
    """Whether a part of `text` is a value that the operator chooses: `$$` is a plain dollar."""
    return "$" in text.replace("$$", "")


def _line(value: JsonValue) -> str:
    """Return a command, a string or a list of words, as one line."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return " ".join(str(item) for item in value if isinstance(item, str | int | float))
    return ""


def _is_piped(line: str) -> bool:
    """
    Whether something is piped into an interpreter.

    Probes of one's own port are no downloads: there, what is fetched has to be run.
    """
    # Parts and first words, not a pattern: a line of nothing but bars stays cheap.
    heads = (part.split(None, 1) for part in line.split("|")[1:])
    return any(head and head[0].strip("'\"").rpartition("/")[2] in _INTERPRETERS for head in heads)


def observe_code(service: dict[str, JsonValue], place: str) -> Iterator[Observation]:
    """Yield what the commands of a service fetch, leave to the operator, or let in."""
    health = service.get("healthcheck")
    lines = {
        "command": _line(service.get("command")),
        "entrypoint": _line(service.get("entrypoint")),
        "healthcheck": _line(health.get("test")) if isinstance(health, dict) else "",
    }
    for member, line in lines.items():
        where = f"{place}.{member}"
        if _interpolated(line):
            yield _see(_COMPLETE, where, "the operator chooses a part of what is run", 3)
        probe = member == "healthcheck"
        if _is_piped(line) or (not probe and (_FETCHES.search(line) or _ADDRESS.search(line))):
            yield _see(_COMPLETE, where, "fetches something when it starts", 3)
        if SHELLS.search(line.lower()):
            yield _see(_ACCESS, where, "a remote shell", 5, contradicts=True)


def observe_environment(service: dict[str, JsonValue], place: str) -> Iterator[Observation]:
    """Yield environment that the operator chooses, and what of it can be code."""
    environment = service.get("environment", service.get("env"))
    chosen = [name for name, value in _pairs(environment) if value is None or _interpolated(value)]
    where = f"{place}.environment"
    if chosen:
        text = f"{len(chosen)} value(s) that the operator chooses and nothing measures"
        yield _see(_ACCESS, where, text, 5)
    if any(name.upper() in _CODE_NAMES or "$" in name for name in chosen):
        yield _see(_COMPLETE, where, "the operator chooses where code is loaded from", 3)


def _pairs(value: JsonValue) -> Iterator[tuple[str, str | None]]:
    """Yield names and values; None stands for a value that comes from the operator's side."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield name, None if item is None else str(item)
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, dict):
                yield from _pairs(item)
            elif isinstance(item, str):
                name, given, text = item.partition("=")
                yield name, text if given else None
