"""All faces on one node: which of them a request comes to, and over which connection."""

from __future__ import annotations

import pytest
from faced_place import ASKED, CHAT, Faced
from near_face_place import FINGERPRINT
from plain_aci_reader import require_bound, require_receipt

from confide.wire.faces import FaceName

ALL = tuple(FaceName)


def test_every_face_that_has_a_name_can_be_put_on() -> None:
    assert {face.name for face in Faced(*ALL).faces} == set(FaceName)
    assert Faced().faces == ()


@pytest.mark.parametrize("tls", [False, True])
def test_what_is_sealed_by_ehbp_comes_to_ehbp_whatever_else_is_on(tls: bool) -> None:
    place = Faced(*ALL)
    body, headers = place.ehbp()
    answer = place.call("POST", CHAT, body=body, headers=headers, tls=tls)
    assert "ehbp-response-nonce" in answer.headers
    assert place.way() == "ehbp"


def test_calls_in_clear_over_tls_are_nears_where_near_is_on() -> None:
    place = Faced(*ALL)
    answer = place.call("POST", CHAT, body=ASKED, tls=True)
    assert (answer.status_code, place.way()) == (200, "near/tls")
    assert "x-receipt-id" not in answer.headers
    for path in ("/v1/aci/sessions", "/v1/receipts/x"):
        assert place.call("GET", path, tls=True).status_code == 404


def test_and_acis_where_it_is_not() -> None:
    place = Faced(FaceName.ACI, FaceName.EHBP)
    answer = place.call("POST", CHAT, body=ASKED, tls=True)
    assert (answer.status_code, place.way()) == (200, "aci/tls")
    keyset = require_bound(place.call("GET", "/v1/aci/attestation").json(), None)
    assert keyset["tls_public_keys"] == [{"spki_sha256": FINGERPRINT.hex()}]
    path = "/v1/aci/receipts/" + answer.headers["x-receipt-id"]
    receipt = place.call("GET", path, tls=True)
    require_receipt(receipt.content, keyset, ASKED, answer.content)
    assert place.call("GET", path).status_code == 404, "not in clear"


@pytest.mark.parametrize("faces", [ALL, (FaceName.ACI, FaceName.EHBP), ()])
def test_in_clear_no_face_answers_a_call(faces: tuple[FaceName, ...]) -> None:
    place = Faced(*faces)
    assert place.call("POST", CHAT, body=ASKED).status_code >= 400
    assert place.upstream.seen == []


def test_a_report_of_aci_is_told_with_all_faces_on() -> None:
    place = Faced(*ALL)
    report = place.call("GET", "/v1/aci/attestation").json()
    require_bound(report, None)
    assert len(report["attestation"]["evidence"]["confide"]["lacks"]) == len(ALL)


@pytest.mark.parametrize(("inside", "word"), [(True, "direct"), (False, "aggregator")])
def test_where_the_engine_is_decides_what_aci_calls_the_node(inside: bool, word: str) -> None:
    place = Faced(FaceName.ACI, engine_inside=inside)
    report = place.call("GET", "/v1/aci/attestation").json()
    assert report["service_capabilities"]["serving"] == word
    answer = place.call("POST", CHAT, body=ASKED, tls=True)
    path = "/v1/aci/receipts/" + answer.headers["x-receipt-id"]
    events = place.call("GET", path, tls=True).json()["event_log"]
    assert ("upstream.verified" in {event["type"] for event in events}) is not inside


@pytest.mark.parametrize(
    ("method", "path"), [("GET", CHAT), ("POST", "/v1/models"), ("DELETE", "/v1/aci/receipts/x")]
)
def test_aci_refuses_other_methods_over_tls(method: str, path: str) -> None:
    assert Faced(FaceName.ACI).call(method, path, tls=True).status_code == 405


@pytest.mark.parametrize("name", ["X-E2EE-Version", "x-client-pub-key", "X-Signing-Algo"])
def test_who_believes_that_fields_are_sealed_is_refused_by_aci(name: str) -> None:
    place = Faced(FaceName.ACI)
    answer = place.call("POST", CHAT, body=ASKED, headers={name: "2"}, tls=True)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_e2ee")
    assert place.upstream.seen == []
