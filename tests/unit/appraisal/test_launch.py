"""Launch registers: every form, every way in which one can be wrong."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest
from dstack_logs import COMPOSE, COMPOSE_HASH, events

from confide.appraisal.dstack_log import DstackEvents, KeyProvider, read_dstack_events
from confide.appraisal.launch import (
    MRCONFIG_UNSET,
    MrConfigV3,
    init_data_digest,
    judge_mrconfigid,
    mr_config_v3_hash,
    mrconfigid_form1,
    mrconfigid_form2,
    mrconfigid_form3,
    parse_mr_config_v3,
    require_host_data,
    require_init_data,
    require_snp_compose,
)
from confide.appraisal.steps import Refused
from confide.errors import FormatError, Reason
from confide.wire.rtmr_log import encode_log, parse_log


def measured(**changed: bytes | None) -> DstackEvents:
    return read_dstack_events(parse_log(encode_log(events(**changed))))


EVENTS = measured()
DOCUMENT = MrConfigV3(
    compose_hash=COMPOSE_HASH,
    key_provider="kms",
    app_id=COMPOSE_HASH[:20],
    key_provider_id=bytes.fromhex("0a0b"),
)


def _form2(**changed: Any) -> bytes:
    given: dict[str, Any] = {
        "app_id": EVENTS.app_id,
        "provider": "kms",
        "provider_id": bytes.fromhex("0a0b"),
    } | changed
    return mrconfigid_form2(COMPOSE_HASH, **given)


@pytest.mark.parametrize(
    ("register", "form"),
    [
        (MRCONFIG_UNSET, 0),
        (mrconfigid_form1(COMPOSE_HASH), 1),
        (_form2(), 2),
        (mrconfigid_form3(DOCUMENT.encode()), 3),
        (mrconfigid_form3(replace(DOCUMENT, app_id=None).encode()), 3),
        (mrconfigid_form3(replace(DOCUMENT, instance_id=bytes(20)).encode()), 3),
        (
            mrconfigid_form3(
                replace(DOCUMENT, gpu_policy_hash=hashlib.sha256(b"{}").digest()).encode()
            ),
            3,
        ),
    ],
)
def test_each_form_binds_what_was_measured(register: bytes, form: int) -> None:
    assert len(register) == 48
    assert judge_mrconfigid(register, EVENTS) == form


@pytest.mark.parametrize(
    "register",
    [
        mrconfigid_form1(bytes(32)),
        mrconfigid_form1(COMPOSE_HASH)[:-1] + b"\x01",
        _form2(provider="none"),
        _form2(provider="local"),
        _form2(provider_id=b""),
        _form2(app_id=bytes(20)),
        _form2()[:-1] + b"\x01",
        mrconfigid_form3(replace(DOCUMENT, key_provider="none").encode()),
        mrconfigid_form3(replace(DOCUMENT, compose_hash=bytes(32)).encode()),
        mrconfigid_form3(DOCUMENT.encode() + b"\n"),
        mrconfigid_form3(DOCUMENT.encode())[:-1] + b"\x01",
        b"\x04" + mrconfigid_form1(COMPOSE_HASH)[1:],
        b"\x00" + mrconfigid_form1(COMPOSE_HASH)[1:],
    ],
)
def test_a_register_that_says_something_else_is_refused(register: bytes) -> None:
    with pytest.raises(Refused) as refused:
        judge_mrconfigid(register, EVENTS)
    assert refused.value.reason is Reason.MRCONFIGID_MISMATCH


def test_the_kinds_of_form_2_are_those_of_the_names_in_the_log() -> None:
    for name in ("none", "local-sgx", "kms", "tpm"):
        payload = f'{{"name":"{name}","id":""}}'.encode()
        register = _form2(provider=name, provider_id=b"")
        assert judge_mrconfigid(register, measured(key_provider=payload)) == 2
    assert _form2(provider="local") == _form2(provider="local-sgx")
    absent = _form2(provider="none", provider_id=b"")
    assert judge_mrconfigid(absent, measured(key_provider=None)) == 2


def test_form_2_with_a_provider_that_it_does_not_know_is_refused() -> None:
    other = measured(key_provider=b'{"name":"other","id":""}')
    with pytest.raises(Refused):
        judge_mrconfigid(_form2(), other)


def test_a_presented_document_of_form_3_has_to_agree_with_the_log() -> None:
    raw = DOCUMENT.encode()
    assert judge_mrconfigid(mrconfigid_form3(raw), EVENTS, document=raw) == 3
    for changed in (
        replace(DOCUMENT, app_id=bytes(20)),
        replace(DOCUMENT, key_provider="tpm"),
        replace(DOCUMENT, key_provider_id=b""),
        replace(DOCUMENT, compose_hash=bytes(32)),
        replace(DOCUMENT, init_script_hashes=(bytes(32),)),
    ):
        other = changed.encode()
        with pytest.raises(Refused):
            judge_mrconfigid(mrconfigid_form3(other), EVENTS, document=other)
    other = replace(DOCUMENT, app_id=None).encode()
    with pytest.raises(Refused):
        judge_mrconfigid(mrconfigid_form3(raw), EVENTS, document=other)


def test_form_3_names_a_local_provider_in_its_own_way() -> None:
    local = measured(key_provider=b'{"name":"local-sgx","id":"01"}')
    for name in ("local", "local-sgx"):
        document = replace(DOCUMENT, key_provider=name, key_provider_id=b"\x01").encode()
        register = mrconfigid_form3(document)
        assert judge_mrconfigid(register, local) == 3
        assert judge_mrconfigid(register, local, document=document) == 3


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"{}",
        DOCUMENT.encode() + b" ",
        DOCUMENT.encode().replace(b'"version":3', b'"version":2'),
        DOCUMENT.encode().replace(b'"version":3', b'"version":3,"zzz":1'),
        DOCUMENT.encode().replace(b"0a0b", b"0A0B"),
        DOCUMENT.encode().replace(b'"kms"', b"1"),
        b"{" + bytes(70_000) + b"}",
    ],
)
def test_a_document_of_form_3_that_is_not_canonical_is_malformed(document: bytes) -> None:
    with pytest.raises(FormatError):
        parse_mr_config_v3(document)


def test_the_document_of_form_3_reads_back() -> None:
    full = replace(
        DOCUMENT, init_script_hashes=(bytes(32),), instance_id=b"", gpu_policy_hash=bytes(32)
    )
    for document in (DOCUMENT, full):
        assert parse_mr_config_v3(document.encode()) == document


def test_host_data_holds_the_hash_of_form_3() -> None:
    raw = DOCUMENT.encode()
    assert require_host_data(mr_config_v3_hash(raw), raw) == DOCUMENT
    for host_data in (bytes(32), mr_config_v3_hash(raw + b" ")):
        with pytest.raises(Refused) as refused:
            require_host_data(host_data, raw)
        assert refused.value.reason is Reason.HOST_DATA_MISMATCH


def test_an_snp_machine_is_bound_through_the_document_of_form_3() -> None:
    raw = DOCUMENT.encode()
    host_data = mr_config_v3_hash(raw)
    described: Any = {"mr_config": raw.decode()}
    assert require_snp_compose(host_data, COMPOSE, described) == DOCUMENT
    cases: tuple[tuple[bytes, bytes, Any, Reason], ...] = (
        (host_data, COMPOSE + b"\n", described, Reason.COMPOSE_HASH_MISMATCH),
        (bytes(32), COMPOSE, described, Reason.HOST_DATA_MISMATCH),
        (hashlib.sha256(COMPOSE).digest(), COMPOSE, described, Reason.HOST_DATA_MISMATCH),
        (host_data, COMPOSE, {}, Reason.EVIDENCE_MISSING),
        (host_data, COMPOSE, None, Reason.EVIDENCE_MISSING),
    )
    for register, launch, config, reason in cases:
        with pytest.raises(Refused) as refused:
            require_snp_compose(register, launch, config)
        assert refused.value.reason is reason


TOML = b'algorithm = "sha384"\nversion = "0.1.0"\n'


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize("size", [32, 48])
def test_init_data_is_cut_or_filled(algorithm: str, size: Any) -> None:
    digest = hashlib.new(algorithm, TOML).digest()
    register = init_data_digest(TOML, algorithm, size=size)
    assert register == (digest + bytes(48))[:size]
    require_init_data(register, TOML, algorithm)
    expected = Reason.MRCONFIGID_MISMATCH if size == 48 else Reason.HOST_DATA_MISMATCH
    for wrong in (bytes(size), register[:-1] + bytes([register[-1] ^ 1])):
        with pytest.raises(Refused) as refused:
            require_init_data(wrong, TOML, algorithm)
        assert refused.value.reason is expected
    with pytest.raises(Refused):
        require_init_data(register, TOML + b"\n", algorithm)


@pytest.mark.parametrize("algorithm", ["sha1", "md5", "SHA384", "sha-384", "", "shake_128"])
def test_init_data_with_another_algorithm_is_malformed(algorithm: str) -> None:
    with pytest.raises(FormatError):
        init_data_digest(TOML, algorithm, size=48)


def test_two_providers_are_one_when_name_and_id_are() -> None:
    assert KeyProvider("kms", b"\x01", b"raw") == KeyProvider("kms", b"\x01")
    assert KeyProvider("kms", b"\x01") != KeyProvider("tpm", b"\x01")
