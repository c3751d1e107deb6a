"""A NEAR client that knows the published wire description and nothing of this project.

Written from the description alone (sections 3 to 6), with the standard library and `cryptography`:
its own Keccak, recovery, replay, field encryption. It imports nothing of `confide`, so that both
ends of a test cannot share a mistake.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import struct
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

# --- Keccak-256, as Ethereum has it -----------------------------------------------------------

_M = (1 << 64) - 1


def _rotate(value: int, by: int) -> int:
    return ((value << by) | (value >> (64 - by))) & _M if by else value


def _keccak_f(lanes: list[list[int]]) -> list[list[int]]:
    shift = 1
    for _ in range(24):
        column = [a[0] ^ a[1] ^ a[2] ^ a[3] ^ a[4] for a in lanes]
        spread = [column[(x + 4) % 5] ^ _rotate(column[(x + 1) % 5], 1) for x in range(5)]
        lanes = [[lanes[x][y] ^ spread[x] for y in range(5)] for x in range(5)]
        x, y, current = 1, 0, lanes[1][0]
        for step in range(24):
            x, y = y, (2 * x + 3 * y) % 5
            current, lanes[x][y] = lanes[x][y], _rotate(current, (step + 1) * (step + 2) // 2 % 64)
        for y in range(5):
            row = [lanes[x][y] for x in range(5)]
            for x in range(5):
                lanes[x][y] = row[x] ^ (~row[(x + 1) % 5] & row[(x + 2) % 5] & _M)
        for bit in range(7):
            shift = ((shift << 1) ^ ((shift >> 7) * 0x71)) % 256
            if shift & 2:
                lanes[0][0] ^= 1 << ((1 << bit) - 1)
    return lanes


def keccak256(data: bytes) -> bytes:
    rate = 136
    padded = data + b"\x01" + bytes(-(len(data) + 2) % rate) + b"\x80"
    if len(data) % rate == rate - 1:
        padded = data + b"\x81"
    lanes = [[0] * 5 for _ in range(5)]
    for at in range(0, len(padded), rate):
        for index in range(rate // 8):
            word = padded[at + 8 * index : at + 8 * index + 8]
            lanes[index % 5][index // 5] ^= int.from_bytes(word, "little")
        lanes = _keccak_f(lanes)
    return b"".join(lanes[index % 5][index // 5].to_bytes(8, "little") for index in range(4))


# --- secp256k1: who made a recoverable signature ----------------------------------------------

_P = 2**256 - 2**32 - 977
_N = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
_G = (
    0x79BE667EF9DCBBAC55A06295CE870B07029BFCDB2DCE28D959F2815B16F81798,
    0x483ADA7726A3C4655DA4FBFC0E1108A8FD17B448A68554199C47D08FFB10D4B8,
)
Point = tuple[int, int] | None


def _add(a: Point, b: Point) -> Point:
    if a is None or b is None:
        return b if a is None else a
    if a[0] == b[0] and (a[1] + b[1]) % _P == 0:
        return None
    slope = (
        3 * a[0] * a[0] * pow(2 * a[1], -1, _P)
        if a == b
        else (b[1] - a[1]) * pow(b[0] - a[0], -1, _P)
    )
    x = (slope * slope - a[0] - b[0]) % _P
    return x, (slope * (a[0] - x) - a[1]) % _P


def _times(scalar: int, point: Point) -> Point:
    found: Point = None
    while scalar:
        if scalar & 1:
            found = _add(found, point)
        point, scalar = _add(point, point), scalar >> 1
    return found


def recover(text: bytes, signature: bytes) -> bytes:
    """The address that signed `text` in the way of wallets."""
    r, s = (int.from_bytes(signature[at : at + 32], "big") for at in (0, 32))
    assert signature[64] in (27, 28)
    prefix = b"\x19Ethereum Signed Message:\n" + str(len(text)).encode()
    digest = int.from_bytes(keccak256(prefix + text), "big")
    y = pow(r**3 + 7, (_P + 1) // 4, _P)
    if y % 2 != signature[64] - 27:
        y = _P - y
    inverse = pow(r, -1, _N)
    key = _add(_times(s * inverse % _N, (r, y)), _times(-digest * inverse % _N, _G))
    assert key is not None
    return address(key[0].to_bytes(32, "big") + key[1].to_bytes(32, "big"))


def address(public_key: bytes) -> bytes:
    return keccak256(public_key)[12:]


# --- sections 3 and 4: the report -------------------------------------------------------------


@dataclass
class Quote:
    """The fields of a TDX quote version 4 that this client compares, at their offsets."""

    raw: bytes

    def at(self, offset: int, size: int) -> bytes:
        return self.raw[48 + offset : 48 + offset + size]

    @property
    def report_data(self) -> bytes:
        return self.at(520, 64)

    @property
    def mr_config_id(self) -> bytes:
        return self.at(184, 48)

    def rtmr(self, index: int) -> bytes:
        return self.at(328 + 48 * index, 48)


def replay(log: list[dict[str, Any]]) -> list[bytes]:
    registers = [bytes(48)] * 4
    for entry in log:
        digest = bytes.fromhex(entry["digest"])
        if entry["imr"] == 3:
            assert entry["event_type"] == 0x08000001
            payload = bytes.fromhex(entry["event_payload"])
            made = struct.pack("<I", 0x08000001) + b":" + entry["event"].encode() + b":" + payload
            assert digest == hashlib.sha384(made).digest(), entry["event"]
        registers[entry["imr"]] = hashlib.sha384(registers[entry["imr"]] + digest).digest()
    return registers


@dataclass
class Node:
    """What a report proves about a node, as far as this client goes: keys and addresses."""

    algorithm: str
    address: bytes
    public_key: bytes
    ohttp_config: bytes


def check_report(raw: bytes, *, nonce: bytes, fingerprint: bytes | None) -> Node:
    """Everything of sections 3 and 4 but the vendors' signatures; AssertionError otherwise."""
    report = json.loads(raw)
    assert list(report)[:9] == [
        *("model_name", "signing_address", "signing_algo", "signing_public_key", "request_nonce"),
        *("intel_quote", "nvidia_payload", "event_log", "info"),
    ]
    algorithm = report["signing_algo"]
    public_key = bytes.fromhex(report["signing_public_key"])
    if algorithm == "ecdsa":
        assert report["signing_address"].startswith("0x")
        named = bytes.fromhex(report["signing_address"][2:])
        assert len(public_key) == 64
        assert address(public_key) == named
    else:
        named = bytes.fromhex(report["signing_address"])
        assert public_key == named
        assert len(named) == 32
    assert report["request_nonce"] == nonce.hex()
    quote = Quote(bytes.fromhex(report["intel_quote"]))
    assert quote.raw[:2] == b"\x04\x00"
    assert quote.raw[4:8] == b"\x81\x00\x00\x00"
    if fingerprint is None:
        assert "tls_cert_fingerprint" not in report
        first = named.ljust(32, b"\0")
    else:
        assert report["tls_cert_fingerprint"] == fingerprint.hex()
        first = hashlib.sha256(named + fingerprint).digest()
    assert quote.report_data == first + nonce
    compose = report["info"]["tcb_info"]["app_compose"].encode()
    json.loads(compose)
    assert quote.mr_config_id == b"\x01" + hashlib.sha256(compose).digest() + bytes(15)
    registers = replay(report["event_log"])
    for index in range(4):
        assert registers[index] == quote.rtmr(index)
        assert report["info"]["tcb_info"][f"rtmr{index}"] == registers[index].hex()
    _check_devices(json.loads(report["nvidia_payload"]), nonce)
    outer = {"all_attestations", "ohttp_key_config", "ohttp_attestation"}
    inner = {name: value for name, value in report.items() if name not in outer}
    assert inner in report["all_attestations"]
    return Node(
        algorithm, named, public_key, _ohttp(report, named if algorithm != "ecdsa" else None)
    )


def _check_devices(payload: dict[str, Any], nonce: bytes) -> None:
    assert payload["arch"] in ("HOPPER", "BLACKWELL")
    assert payload["nonce"] == nonce.hex()
    assert payload["evidence_list"]
    for device in payload["evidence_list"]:
        assert device["nonce"] == nonce.hex()
        chain = base64.b64decode(device["certificate"], validate=True)
        assert chain.count(b"BEGIN CERTIFICATE") == 5
        evidence = base64.b64decode(device["evidence"], validate=True)
        # The SPDM request comes first: four bytes of header, then the nonce.
        assert evidence[4:36] == nonce


def _ohttp(report: dict[str, Any], attested: bytes | None) -> bytes:
    attestation = report["ohttp_attestation"]
    config = bytes.fromhex(attestation["key_config"])
    assert report["ohttp_key_config"] == attestation["key_config"]
    signer = bytes.fromhex(attestation["signing_key"])
    assert attested in (None, signer)
    key = ed25519.Ed25519PublicKey.from_public_bytes(signer)
    key.verify(bytes.fromhex(attestation["signature"]), config)
    assert len(config) == 45
    assert config[1:3] == b"\x00\x20"
    assert config[35:] == bytes.fromhex("00080001000100010003")
    return config


# --- section 5: signatures --------------------------------------------------------------------


def check_signature(
    answer: dict[str, Any], *, node: Node, model: str, request: bytes, response: bytes
) -> None:
    digests = [hashlib.sha256(body).hexdigest() for body in (request, response)]
    assert answer["text"] == ":".join([model, *digests])
    text = answer["text"].encode()
    assert answer["signing_algo"] == node.algorithm
    if node.algorithm == "ecdsa":
        assert answer["signature"].startswith("0x")
        assert recover(text, bytes.fromhex(answer["signature"][2:])) == node.address
        assert bytes.fromhex(answer["signing_address"][2:]) == node.address
    else:
        key = ed25519.Ed25519PublicKey.from_public_bytes(node.address)
        key.verify(bytes.fromhex(answer["signature"]), text)
        assert answer["signing_address"] == node.address.hex()


# --- section 6: field encryption --------------------------------------------------------------


def _hkdf(shared: bytes, info: bytes) -> bytes:
    return HKDF(hashes.SHA256(), 32, salt=None, info=info).derive(shared)


def _quarter(state: list[int], a: int, b: int, c: int, d: int) -> None:
    for one, two, three, by in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        state[one] = (state[one] + state[two]) & 0xFFFFFFFF
        mixed = state[three] ^ state[one]
        state[three] = ((mixed << by) | (mixed >> (32 - by))) & 0xFFFFFFFF


def _xchacha(key: bytes, nonce: bytes) -> tuple[ChaCha20Poly1305, bytes]:
    state = list(struct.unpack("<16I", b"expand 32-byte k" + key + nonce[:16]))
    for _ in range(10):
        for at in range(4):
            _quarter(state, at, at + 4, at + 8, at + 12)
        for at in range(4):
            _quarter(state, at, 4 + (at + 1) % 4, 8 + (at + 2) % 4, 12 + (at + 3) % 4)
    subkey = struct.pack("<8I", *state[:4], *state[12:])
    return ChaCha20Poly1305(subkey), bytes(4) + nonce[16:]


_Q = 2**255 - 19


def _montgomery(public_key: bytes) -> x25519.X25519PublicKey:
    y = int.from_bytes(public_key, "little") & ((1 << 255) - 1)
    u = (1 + y) * pow(1 - y, -1, _Q) % _Q
    return x25519.X25519PublicKey.from_public_bytes(u.to_bytes(32, "little"))


@dataclass
class Ed25519Session:
    """A client of v2 with `X-Signing-Algo: ed25519`."""

    node_key: bytes
    seed: bytes = field(default_factory=lambda: os.urandom(32))
    algorithm: str = "ed25519"

    @property
    def headers(self) -> dict[str, str]:
        key = ed25519.Ed25519PrivateKey.from_private_bytes(self.seed).public_key()
        return {
            "x-signing-algo": self.algorithm,
            "x-client-pub-key": key.public_bytes_raw().hex(),
            "x-encryption-version": "2",
        }

    def seal(self, text: str) -> str:
        ephemeral, nonce = x25519.X25519PrivateKey.generate(), os.urandom(24)
        shared = ephemeral.exchange(_montgomery(self.node_key))
        cipher, short = _xchacha(_hkdf(shared, b"ed25519_encryption"), nonce)
        sealed = cipher.encrypt(short, text.encode(), None)
        return (ephemeral.public_key().public_bytes_raw() + nonce + sealed).hex()

    def open(self, sealed: str) -> str:
        raw = bytes.fromhex(sealed)
        secret = x25519.X25519PrivateKey.from_private_bytes(hashlib.sha512(self.seed).digest()[:32])
        shared = secret.exchange(x25519.X25519PublicKey.from_public_bytes(raw[:32]))
        cipher, short = _xchacha(_hkdf(shared, b"ed25519_encryption"), raw[32:56])
        return cipher.decrypt(short, raw[56:], None).decode()


def _point(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )


@dataclass
class EcdsaSession:
    """A client with `X-Signing-Algo: ecdsa`, which has one form in both versions."""

    node_key: bytes
    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256K1())
    )
    algorithm: str = "ecdsa"

    @property
    def headers(self) -> dict[str, str]:
        return {"x-signing-algo": self.algorithm, "x-client-pub-key": _point(self.key).hex()}

    def seal(self, text: str) -> str:
        ephemeral, nonce = ec.generate_private_key(ec.SECP256K1()), os.urandom(12)
        node = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), b"\4" + self.node_key)
        shared = ephemeral.exchange(ec.ECDH(), node)
        cipher = AESGCM(_hkdf(shared, b"ecdsa_encryption"))
        return (_point(ephemeral) + nonce + cipher.encrypt(nonce, text.encode(), None)).hex()

    def open(self, sealed: str) -> str:
        raw = bytes.fromhex(sealed)
        sender = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), raw[:65])
        cipher = AESGCM(_hkdf(self.key.exchange(ec.ECDH(), sender), b"ecdsa_encryption"))
        return cipher.decrypt(raw[65:77], raw[77:], None).decode()


Session = Ed25519Session | EcdsaSession


def session(node: Node) -> Session:
    """A session with `node` in the algorithm of its report."""
    if node.algorithm == "ecdsa":
        return EcdsaSession(node.public_key)
    return Ed25519Session(node.public_key)


def data_lines(body: bytes) -> list[str]:
    """The data of every event of a stream."""
    blocks = body.decode().split("\n\n")
    return [block.removeprefix("data: ") for block in blocks if block.startswith("data: ")]
