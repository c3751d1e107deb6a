"""Targets: YAML, and launch documents of every kind."""

from __future__ import annotations

import json
from functools import partial

from confide.appraisal.workload import read_workload
from confide.errors import Reason
from confide.wire.json import jcs
from confide.wire.service import LaunchDocument
from confide.wire.yaml import parse_yaml
from fuzz import seeds
from fuzz.driver import Target
from fuzz.pieces import fixed

_COMPOSE = b"""\
x-base: &base
  image: app:1@sha256:5618a93a78c9ac9173e7ebf7c8af173bd675be6832a2f8c2a9a7149ac2678f54
  volumes: [/var/run/dstack.sock:/var/run/dstack.sock, "data:/data"]
services:
  a: {<<: *base, privileged: no, ports: ["8080:80"]}
  b:
    <<: [*base]
    cap_add: [SYS_ADMIN]
    logging: {driver: gelf}
volumes:
  data: {driver_opts: {device: /}}
"""
_INIT = b"""\
version = "0.1.0"
algorithm = "sha384"
[data]
"policy.rego" = '''package p'''
"cdh.toml" = 'url = "x"'
"""
_TOKENS = (
    b"&a ",
    b"*a",
    b"<<: ",
    b"- ",
    b": ",
    b"[",
    b"{",
    b"!!int ",
    b"---\n",
    b"? ",
    b"'",
    b"|\n",
)


def _yaml(raw: bytes) -> None:
    value = parse_yaml(raw, what="input", reason=Reason.SERVICE_FORMAT)
    # Whatever is read can be said in JSON.
    json.dumps(value, allow_nan=False)


def _read(kind: str, raw: bytes) -> None:
    workload = read_workload(LaunchDocument(kind=kind, raw=raw))
    assert all(str(found).isprintable() for found in workload.observations)


def _app_composes() -> tuple[bytes, ...]:
    document = {"runner": "docker-compose", "docker_compose_file": _COMPOSE.decode()}
    return (jcs(document), *seeds.vectors("dstack/*app_compose.json"))


WORKLOAD_TARGETS: tuple[Target, ...] = (
    Target("yaml", _yaml, fixed(_COMPOSE), tokens=_TOKENS),
    Target("compose", partial(_read, "docker-compose"), fixed(_COMPOSE), tokens=_TOKENS),
    Target("app-compose", partial(_read, "dstack-compose"), _app_composes, json_values=True),
    Target("init-data", partial(_read, "init-data"), fixed(_INIT), tokens=(b"[a]\n", b'"""')),
)
