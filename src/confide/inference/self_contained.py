"""Whether a model folder leads those who load it out of what was measured. Pure.

docs/protocols/weights.md §10. A digest covers the files of a folder. Some of these files name
others, and libraries follow the name wherever it leads; such a folder is refused before anybody
loads it.

What this does not do: it knows the files and members that transformers, vLLM and diffusers were
seen to follow. An engine may know others, and may be told more than its folder says (§10.4).
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NoReturn

from confide.errors import FormatError, Reason
from confide.inference.weights import IGNORED_PATHS
from confide.wire.json import limit_depth

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from confide.wire.json import JsonValue

__all__ = ["MAX_LEAD_BYTES", "require_self_contained"]

# The longest published index, of a few hundred thousand tensors, is about 20 MB.
MAX_LEAD_BYTES = 64 * 1024 * 1024
_MAX_DEPTH = 64
_CLAUSE = "docs/protocols/weights.md §10"

# From: transformers 5.23 and diffusers: an index may have a variant, like "fp16", before its end.
_INDEX = re.compile(r".\.index(\.[^.]+)?\.json\Z")
# From: transformers, `configuration_files`: "config.5.0.json" may stand in for "config.json".
_CONFIG = re.compile(r"config(\..+)?\.json\Z")
_TOKENIZER, _PROCESSOR, _MODULES = "tokenizer_config.json", "processor_config.json", "modules.json"
# At the top they make a folder something else: an adapter of a base, a processor over a model.
_ADAPTER, _AUDIO = "adapter_config.json", "audio_tokenizer_config.json"


def require_self_contained(names: Collection[str], read: Callable[[str], bytes]) -> None:
    """
    Refuse a folder that leads out of the files `names`, relative and with `/`: weights.md §10.

    `read` returns the bytes of one of them; it is asked for few, none a weights file, and need not
    return more than `MAX_LEAD_BYTES` and one. Raises `FormatError`, which names the file and says
    what to do, and whatever `read` raises.
    """
    # What is left out of the measurement is no file of the folder.
    measured = frozenset(name for name in names if _counts(name))
    if _ADAPTER in measured:
        _refuse(_ADAPTER, "an adapter beside the model: merge it in, or remove it")
    if _AUDIO in measured:
        _refuse(_AUDIO, "it names another model: remove it")
    for name in sorted(measured):
        folder, slash, last = name.rpartition("/")
        if not _leads(last):
            continue
        value = _parsed(name, read(name))
        if last == _MODULES:
            _require_inside(name, value)
            continue
        for place in _places(name, last, value):
            # Some resolve it at the top instead: there it may not be one that nobody measured.
            if not (
                isinstance(place, str) and _counts(place) and f"{folder}{slash}{place}" in measured
            ):
                _refuse(name, "it names a file that is not in the folder: add it, or the name goes")


def _counts(name: str) -> bool:
    return name.partition("/")[0] not in IGNORED_PATHS


def _leads(last: str) -> bool:
    known = last in (_TOKENIZER, _PROCESSOR, _MODULES)
    return known or bool(_INDEX.search(last) or _CONFIG.match(last))


def _places(name: str, last: str, value: JsonValue) -> Iterable[JsonValue]:
    """Return what the file says are names of other files; refuse what names another model."""
    if not isinstance(value, dict):
        _refuse(name, "it is no object: replace or remove it")
    if _INDEX.search(last):
        places = value.get("weight_map")
        if not isinstance(places, dict):
            _refuse(name, "an index of shards without weight_map: replace or remove it")
        return places.values()
    if last == _TOKENIZER:
        return _several(name, value, "fast_tokenizer_files")
    other = "audio_tokenizer" if last == _PROCESSOR else "speculators_config"
    if value.get(other) is not None:
        _refuse(name, f"its {other} names another model: remove it")
    if last == _PROCESSOR:
        return ()
    stated = value.get("transformers_weights")
    return [*_several(name, value, "configuration_files"), *([] if stated is None else [stated])]


def _several(name: str, value: dict[str, JsonValue], member: str) -> list[JsonValue]:
    found = value.get(member)
    if found is None:
        return []
    if not isinstance(found, list):
        _refuse(name, f"its {member} is no list: remove it")
    return found


def _require_inside(name: str, value: JsonValue) -> None:
    """Refuse parts of a sentence-transformers model that lie outside; an absent one holds none."""
    if not isinstance(value, list):
        _refuse(name, "it is no list of modules: replace or remove it")
    for module in value:
        path = module.get("path") if isinstance(module, dict) else None
        if not isinstance(path, str) or (path and not _plain(path)):
            _refuse(name, "a module of it has no path within the folder: correct it")


def _plain(path: str) -> bool:
    return _counts(path) and all(part not in ("", ".", "..") for part in path.split("/"))


def _parsed(name: str, raw: bytes) -> JsonValue:
    """
    Parse as those who load it do, but for objects that can be read in two ways.

    Numbers are as they come: a tokenizer without a length says 10^30.
    """
    if len(raw) > MAX_LEAD_BYTES:
        _refuse(name, f"it is longer than {MAX_LEAD_BYTES} bytes: replace or remove it")
    limit_depth(raw, _MAX_DEPTH, what=repr(name), reason=Reason.MODEL_MISMATCH)
    try:
        value: JsonValue = _DECODER.decode(raw.decode("utf-8"))
    except ValueError:
        _refuse(name, "it is no JSON, or has a member twice: replace or remove it")
    return value


def _once(items: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    found = dict(items)
    if len(found) != len(items):
        raise ValueError("a member twice")
    return found


# int() on a long string of digits is quadratic; float() is not.
_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_int=float)


def _refuse(name: str, why: str) -> NoReturn:
    raise FormatError(f"{name!r}: {why}", reason=Reason.MODEL_MISMATCH, clause=_CLAUSE)
