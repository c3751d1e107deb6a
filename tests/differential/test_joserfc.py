"""A second opinion: joserfc opens what we seal, and we open what it seals.

Skipped loudly where it is not installed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from confide.crypto.jwe import JweSecrets, UnwrappingKey, derive_unwrapping_key, seal_jwe
from confide.wire.jwe import EcPoint, KeyCurve, RsaModulus, parse_jwe, parse_wrapping_key

_ABSENT = "SECOND OPINION ABSENT: pip install joserfc"
jwe = pytest.importorskip("joserfc.jwe", reason=_ABSENT)
jwk = pytest.importorskip("joserfc.jwk", reason=_ABSENT)

VALUE = b"a value that travels"
SECRETS = JweSecrets(b"k" * 32, b"i" * 12, b"e" * 96)
ALGORITHMS = ["ECDH-ES+A256KW", "RSA-OAEP-256", "A256GCM"]


def _public(key: Any, algorithm: str) -> EcPoint | RsaModulus:
    members = ("kty", "crv", "x", "y") if algorithm.startswith("ECDH") else ("kty", "n", "e")
    document = key.as_dict(private=False)
    return parse_wrapping_key({**{name: document[name] for name in members}, "alg": algorithm})


@pytest.mark.parametrize("curve", ["P-256", "P-521"])
def test_it_opens_what_we_seal_to_a_curve(curve: str) -> None:
    key = jwk.ECKey.generate_key(curve, private=True)
    sealed = seal_jwe(_public(key, "ECDH-ES+A256KW"), VALUE, secrets=SECRETS)
    opened = jwe.decrypt_json(json.loads(sealed.encode()), key, algorithms=ALGORITHMS)
    assert opened.plaintext == VALUE


@pytest.mark.parametrize("bits", [2048, 3072])
def test_it_opens_what_we_seal_to_rsa(bits: int) -> None:
    key = jwk.RSAKey.generate_key(bits, private=True)
    sealed = seal_jwe(_public(key, "RSA-OAEP-256"), VALUE, secrets=SECRETS)
    opened = jwe.decrypt_json(json.loads(sealed.encode()), key, algorithms=ALGORITHMS)
    assert opened.plaintext == VALUE


def _sealed_by_it(own: UnwrappingKey) -> bytes:
    theirs = jwk.ECKey.import_key(dict(own.public.document()))
    protected = {"alg": "ECDH-ES+A256KW", "enc": "A256GCM"}
    # In its flattened form the ephemeral key stands unprotected; in its compact form it does not.
    compact = jwe.encrypt_compact(protected, VALUE, theirs, algorithms=ALGORITHMS)
    names = ("protected", "encrypted_key", "iv", "ciphertext", "tag")
    return json.dumps(dict(zip(names, compact.split("."), strict=True))).encode()


@pytest.mark.parametrize("curve", ["P-256", "P-521"])
def test_we_open_what_it_seals(curve: KeyCurve) -> None:
    own = derive_unwrapping_key(curve, b"s" * 96)
    assert own.open(parse_jwe(_sealed_by_it(own))) == VALUE


VECTORS = Path(__file__).resolve().parents[2] / "conformance" / "vectors" / "broker"
CASES = [
    case
    for case in json.loads((VECTORS / "index.json").read_bytes())["cases"]
    if case["kind"] == "jwe" and case.get("reason") != ["broker-format"]
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["id"]))
def test_it_judges_our_vectors_alike(case: dict[str, Any]) -> None:
    """Those that any reader of JWE refuses; a header of ours is narrower than the standard."""
    key = jwk.ECKey.import_key(case["key"])
    document = json.loads((VECTORS / case["files"]["jwe"]).read_bytes())
    if case["outcome"] == "accept":
        opened = jwe.decrypt_json(document, key, algorithms=ALGORITHMS)
        assert hashlib.sha256(opened.plaintext).hexdigest() == case["claims"]["plaintext"]
    else:
        # It raises whatever its parts raise.
        with pytest.raises(Exception):  # noqa: B017, PT011
            jwe.decrypt_json(document, key, algorithms=ALGORITHMS)
