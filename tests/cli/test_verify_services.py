"""`confide verify` of evidence: exit codes, the screen, JSON and EAR, policies that are files."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import reader_cases as cases
from service_files import AT, KINDS, Files, service, with_document, write
from services import NONCE, NOW, near_case, policy_text

from confide.adapters.endorse import Gathered
from confide.appraisal.claim_names import ClaimName
from confide.cli.endorsement_files import read_endorsements
from confide.cli.step_words import STEP_WORDS
from confide.simulator.sigstore import SimulatedSigstore
from confide.wire.bundle import encode_bundle
from confide.wire.endorsements import Endorsements
from confide.wire.evidence import NvidiaEndorsements
from confide.wire.json import jcs

if TYPE_CHECKING:
    from collections.abc import Callable

    from sessions import Cli

    Edit = Callable[[Any], Any]

_SOURCES = Path(__file__).parents[2] / "src" / "confide" / "appraisal"
_NONCE = ("--nonce", NONCE.hex())


@pytest.fixture
def near(tmp_path: Path) -> Files:
    """A simulated NEAR service behind a gateway, in files."""
    return write(service("near"), tmp_path)


# --- exit codes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_accepted_is_0_on_every_kind(cli: Cli, tmp_path: Path, kind: str) -> None:
    files = write(service(kind), tmp_path)
    seen = cli("verify", files.bundle, *files.look)
    assert (seen.code, seen.err) == (0, "")
    assert seen.out.startswith("ACCEPTED (SIMULATED)  by the policy audit: ")


@pytest.mark.parametrize("kind", KINDS)
def test_rejected_is_10_on_every_kind(cli: Cli, tmp_path: Path, kind: str) -> None:
    files = write(service(kind), tmp_path)
    seen = cli("verify", files.bundle, "--policy", "audit", "--at", AT)
    assert (seen.code, seen.err) == (10, "")
    assert seen.out.startswith("REJECTED  by the policy audit: ")
    assert "ACCEPTED" not in seen.out
    assert "--simulated-roots FILE" in seen.out


@pytest.mark.parametrize("kind", KINDS)
def test_malformed_is_30_on_every_kind(cli: Cli, tmp_path: Path, kind: str) -> None:
    found = service(kind)
    first = next(iter(found.capture.documents.values()))
    files = write(with_document(found, first[: len(first) // 2]), tmp_path)
    seen = cli("verify", files.bundle, *files.look)
    assert (seen.code, seen.out) == (30, "")
    assert seen.err.startswith("malformed: ")
    assert "to do" in seen.err


def _other_version(document: Any) -> Any:
    return {**document, "api_version": "aci/99"}


def _other_predicate(_document: Any) -> Any:
    return {"format": "https://tinfoil.sh/predicate/sgx/v9", "body": ""}


def _sgx(raw: bytes) -> bytes:
    return raw[:4] + bytes(4) + raw[8:]


@pytest.mark.parametrize(
    ("kind", "edit"), [("aci", _other_version), ("tinfoil", _other_predicate), ("bare", _sgx)]
)
def test_what_is_not_judged_here_is_20_and_no_verdict(
    cli: Cli, tmp_path: Path, kind: str, edit: Edit
) -> None:
    found = service(kind)
    raw = next(iter(found.capture.documents.values()))
    changed = edit(raw) if kind == "bare" else jcs(edit(json.loads(raw)))
    path = tmp_path / "other"
    path.write_bytes(changed)
    seen = cli("verify", path, "--policy", "audit")
    assert (seen.code, seen.out) == (20, "")
    assert seen.err.startswith("unsupported: ")
    assert "says nothing about trust" in seen.err


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_option_is_2_on_every_kind(cli: Cli, tmp_path: Path, kind: str) -> None:
    files = write(service(kind), tmp_path)
    for words in (["--nonce", "00"], ["--at", "noon"], ["--format", "nearr"], ["--outputs", "."]):
        assert cli("verify", files.bundle, *words).code == 2, words


def test_a_service_that_cannot_be_reached_is_20(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from confide.errors import Unavailable  # noqa: PLC0415 - used here alone

    async def nobody(*_words: object, **_options: object) -> None:
        raise Unavailable("nobody answers")

    monkeypatch.setattr("confide.client.capture.capture", nobody)
    seen = cli("verify", "https://service.example/", "--format", "near", "--json")
    assert seen.code == 20
    assert seen.events[-1]["kind"] == "unavailable"


def test_silence_of_vendors_is_20_and_no_verdict(
    cli: Cli, near: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nobody(*_words: object, **_options: object) -> Gathered:
        return Gathered(Endorsements(), ("Intel: no answer", "NVIDIA: no answer"))

    monkeypatch.setattr("confide.adapters.endorse.gather_endorsements", nobody)
    alone = tmp_path / "report.json"
    alone.write_bytes(near.service.capture.documents["report"])
    seen = cli("verify", alone, *near.look, "--fetch")
    assert (seen.code, seen.out) == (20, "")
    assert seen.err.startswith("unavailable: no verdict: Intel: no answer\n")
    assert "NVIDIA: no answer" in seen.err
    # What is contradicted is contradicted, whoever is silent.
    forged = cli("verify", alone, *near.look, "--nonce", "ab" * 32, "--fetch")
    assert forged.code in {10, 20}
    complete = cli("verify", near.bundle, *near.look, "--fetch")
    assert complete.code == 0
    assert "missing    Intel: no answer" in complete.out


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["--expectation", "FILE"],
        ["--outputs", "."],
        ["--pccs", "https://pccs.example:8081"],
        ["--ear", "--json"],
        ["--ear", "--explain"],
        ["--simulated-roots", f"sha256:{'0' * 64}"],
        ["--simulated-roots", "vendor"],
    ],
)
def test_options_that_would_do_nothing_for_evidence_are_refused(
    cli: Cli, near: Files, words: list[str]
) -> None:
    seen = cli("verify", near.bundle, *words)
    assert seen.code == 2
    assert words[0] in seen.err + seen.out or words[1] in seen.err + seen.out


@pytest.mark.parametrize(
    "words",
    [
        ["--policy", "audit"],
        ["--nonce", NONCE.hex()],
        ["--endorsements", "FILE"],
        ["--fetch"],
        ["--format", "near"],
        ["--model", "m"],
        ["--pccs", "https://pccs.example:8081"],
        ["--ear"],
    ],
)
def test_options_that_would_do_nothing_for_a_receipt_are_refused(
    cli: Cli, receipt: Path, words: list[str]
) -> None:
    seen = cli("verify", receipt, *words)
    assert seen.code == 2
    assert words[0] in seen.err + seen.out


def test_evidence_that_quotes_a_receipt_is_no_receipt(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "document"
    path.write_bytes(jcs({"gateway_attestation": '"type":"confide/receipt/v1"'}))
    assert "NEAR report" in cli("verify", path, "--policy", "audit").err


def test_a_model_that_the_service_does_not_name_is_refused(cli: Cli, near: Files) -> None:
    report = json.loads(near.service.capture.documents["report"])
    named = report["model_attestations"][0]["model_name"]
    assert cli("verify", near.bundle, *near.look, "--model", named).code == 0
    seen = cli("verify", near.bundle, *near.look, "--model", "another/model")
    assert seen.code == 10
    assert "model-mismatch" in seen.out
    assert "--model NAME" in seen.out


def test_a_format_that_names_no_model_does_not_take_one(cli: Cli, tmp_path: Path) -> None:
    files = write(service("bare"), tmp_path)
    assert cli("verify", files.bundle, *files.look, "--model", "m").code == 2


# --- fresh, expected, accepted --------------------------------------------------------------------


def test_the_nonce_in_a_bundle_proves_nothing(cli: Cli, near: Files) -> None:
    without = cli("verify", near.bundle, *near.look, "--json").result
    given = cli("verify", near.bundle, *near.look, *_NONCE, "--json").result
    assert _status(without, "freshness") == "not-proven"
    assert _status(given, "freshness") == "pass"


def test_the_key_of_a_connection_in_a_bundle_proves_nothing(cli: Cli, near: Files) -> None:
    assert near.service.capture.tls_spki_sha256 is not None
    result = cli("verify", near.bundle, *near.look, *_NONCE, "--json").result
    assert _status(result, "tls") == "not-proven"


def test_another_nonce_refuses(cli: Cli, near: Files) -> None:
    seen = cli("verify", near.bundle, *near.look, "--nonce", "ab" * 32)
    assert seen.code == 10
    assert "nonce-mismatch" in seen.out


def test_a_written_policy_accepts_through_files_alone(
    cli: Cli, near: Files, tmp_path: Path
) -> None:
    required = ("hardware", "tcb", "freshness", "keys", "launch", "workload-expected", "gpu")
    path = tmp_path / "mine.toml"
    path.write_text(policy_text(near_case(), require=required))
    words = (near.bundle, *near.trust, *_NONCE, "--policy", path)
    seen = cli("verify", *words, "--json")
    assert seen.code == 0
    assert seen.result["outcome"] == "accepted"
    assert all(_status(seen.result, name) == "pass" for name in required)
    human = cli("verify", *words)
    assert "ACCEPTED (SIMULATED)  by the policy the simulated service: " in human.out


def test_a_written_policy_refuses_what_it_does_not_list(
    cli: Cli, near: Files, tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    text = policy_text(near_case(), require=("hardware", "launch"))
    path.write_text(re.sub(r"rtmr1 = .*", f'rtmr1 = ["{"ab" * 48}"]', text))
    seen = cli("verify", near.bundle, *near.trust, *_NONCE, "--policy", path)
    assert seen.code == 10
    assert "rtmr1-mismatch: not on your list: RTMR1" in seen.out
    assert "tdx.rtmr0" in seen.out


def test_endorsements_from_another_bundle(cli: Cli, near: Files, tmp_path: Path) -> None:
    alone = tmp_path / "report.json"
    alone.write_bytes(near.service.capture.documents["report"])
    assert "collateral-missing" in cli("verify", alone, *near.look).out
    assert cli("verify", alone, *near.look, "--endorsements", near.bundle).code == 0
    collateral = tmp_path / "collateral.json"
    collateral.write_bytes(near.service.endorsements.tdx[0])
    assert cli("verify", alone, *near.look, "--endorsements", collateral).code == 0


def test_manifests_from_files_go_by_the_name_that_nvidia_gives(
    cli: Cli, near: Files, tmp_path: Path
) -> None:
    nvidia = near.service.endorsements.nvidia
    without = replace(near.service.endorsements, nvidia=NvidiaEndorsements((), nvidia.ocsp))
    bundle = tmp_path / "without.bundle"
    bundle.write_bytes(encode_bundle(near.service.capture, without))
    before = cli("verify", bundle, *near.look, "--json").result
    assert _status(before, "gpu-firmware") == "not-proven"
    words: list[Path | str] = []
    for rim in nvidia.rims:
        path = tmp_path / f"{rim.id}.xml"
        path.write_bytes(rim.xml)
        words += ["--endorsements", path]
    after = cli("verify", bundle, *near.look, *words, "--json").result
    assert _status(after, "gpu-firmware") == "pass"
    other = tmp_path / "manifest.xml"
    other.write_bytes(nvidia.rims[0].xml)
    seen = cli("verify", bundle, *near.look, "--endorsements", other)
    assert seen.code == 2
    assert "call a manifest as NVIDIA does" in seen.err


def test_sigstore_bundles_from_files_keep_the_digests_they_name(tmp_path: Path) -> None:
    sigstore = SimulatedSigstore(b"files", NOW)
    signed, attested = tmp_path / "signed.json", tmp_path / "attested.json"
    signed.write_bytes(sigstore.sign_artifact(b"artifact"))
    digest = hashlib.sha256(b"image").digest()
    attested.write_bytes(sigstore.attest(digest, predicate_type="https://p.example", predicate={}))
    found = read_endorsements((signed, attested)).sigstore
    assert [item.sha256 for item in found] == [hashlib.sha256(b"artifact").digest(), digest]
    assert [item.bundle for item in found] == [signed.read_bytes(), attested.read_bytes()]


@pytest.mark.parametrize(
    "end", ["}", ',"messageSignature":{}}', ',"dsseEnvelope":{"payload":"e30="}}']
)
def test_a_sigstore_bundle_that_is_none_is_malformed(
    cli: Cli, near: Files, tmp_path: Path, end: str
) -> None:
    path = tmp_path / "sigstore.json"
    path.write_text('{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json"' + end)
    seen = cli("verify", near.bundle, *near.look, "--endorsements", path)
    assert (seen.code, seen.out) == (30, "")
    assert "endorsements sigstore.json: " in seen.err


def test_strict_says_how_to_begin(cli: Cli, near: Files) -> None:
    seen = cli("verify", near.bundle, *near.trust)
    assert seen.code == 10
    assert "confide policy show strict" in seen.out
    assert "--policy audit" in seen.out


# --- the screen -----------------------------------------------------------------------------------


def test_one_screen_worst_news_first(cli: Cli, near: Files) -> None:
    seen = cli("verify", near.bundle, *near.look)
    lines = seen.out.splitlines()
    assert len(lines) <= 50
    assert lines[0].startswith(
        "ACCEPTED (SIMULATED)  by the policy audit: near evidence of gateway"
    )
    assert lines[1].startswith(" SIMULATED ")
    wanted = ["Not proven", "Proven", "What no check here shows", "Checked"]
    assert [line.split("  ")[0] for line in lines if line.split("  ")[0] in wanted] == wanted
    assert hashlib.sha256(near.bundle.read_bytes()).hexdigest() in seen.out
    assert "given with --at" in seen.out
    assert "none of yours" in seen.out


@pytest.mark.parametrize("kind", KINDS)
def test_every_claim_stands_on_the_screen_once(cli: Cli, tmp_path: Path, kind: str) -> None:
    files = write(service(kind), tmp_path)
    for words in (files.look, files.trust):
        seen = cli("verify", files.bundle, *words)
        body = seen.out.split("What no check here shows")[0].partition("requires")[2]
        told = re.findall(r"^  [✓✗-] (.*?)(?:  |: |$)", body, re.MULTILINE)
        names = [name for row in told for name in re.sub(r" \([^)]*\)", "", row).split(", ")]
        claims = {claim["name"] for claim in _claims(cli("verify", files.bundle, *words, "--json"))}
        assert set(names) == claims - {"physical-attack", "gpu-colocation"}
        if "(model" not in body:
            assert len(names) == len(set(names))


def test_a_refusal_says_what_why_where_and_what_to_do(cli: Cli, near: Files) -> None:
    seen = cli("verify", near.bundle, "--policy", "audit", "--at", "2027-06-01T00:00:00Z").out
    refused = seen.split("\n\n")[1]
    assert refused.startswith("Refused")
    assert "✗ hardware" in refused
    assert "[tdx/" in refused
    assert "→ " in refused
    assert "step tdx" not in refused


def test_a_refusal_names_the_machine(cli: Cli, near: Files, tmp_path: Path) -> None:
    def swap(document: Any) -> Any:
        machine = document["model_attestations"][0]
        quote = bytearray.fromhex(machine["intel_quote"])
        quote[600] ^= 1
        return {**document, "model_attestations": [{**machine, "intel_quote": quote.hex()}]}

    report = swap(json.loads(near.service.capture.documents["report"]))
    files = write(with_document(near.service, json.dumps(report).encode()), tmp_path)
    seen = cli("verify", files.bundle, *files.look)
    assert seen.code == 10
    assert "hardware (model[0])" in seen.out
    assert "gateway)" not in seen.out.split("Refused")[1].split("\n\n")[0]


@pytest.mark.parametrize("words", [(), ("--explain",), ("--json",), ("--ear",)])
@pytest.mark.parametrize("member", ["model_name", "signing_algo", "compose_manager_attestation"])
def test_nothing_of_a_peer_drives_the_terminal(
    cli: Cli, near: Files, tmp_path: Path, member: str, words: tuple[str, ...]
) -> None:
    hostile = "\x1b[2J\x1b]0;owned\x07\u202e[bold red]evil[/]\x9b"
    report = json.loads(near.service.capture.documents["report"])
    report["model_attestations"][0][member] = hostile
    files = write(with_document(near.service, json.dumps(report).encode()), tmp_path)
    seen = cli("verify", files.bundle, *files.look, *words)
    assert seen.code in {0, 10, 30}
    assert not set(seen.out + seen.err) & {"\x1b", "\x07", "\u202e", "\x9b"}


def test_the_name_of_a_file_does_not_drive_the_terminal(
    cli: Cli, near: Files, tmp_path: Path
) -> None:
    path = tmp_path / "x\x1b[2J\u202e.bundle"
    path.write_bytes(near.bundle.read_bytes())
    seen = cli("verify", path, *near.look)
    assert seen.code == 0
    assert not set(seen.out) & {"\x1b", "\u202e"}


# --- explain --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_explain_teaches_every_claim_and_every_step(cli: Cli, tmp_path: Path, kind: str) -> None:
    files = write(service(kind), tmp_path)
    seen = cli("verify", files.bundle, *files.look, "--explain")
    claims = _claims(cli("verify", files.bundle, *files.look, "--json"))
    shown = len(claims) - sum(c["name"] in {"physical-attack", "gpu-colocation"} for c in claims)
    assert seen.out.count("A pass shows: ") == shown
    assert seen.out.count("Otherwise: ") == seen.out.count("To do: ")
    assert "Each line is one claim" in seen.out
    steps = re.findall(r"^    [✓✗-] (\S+)  (.*)$", seen.out, re.MULTILINE)
    assert steps
    assert all(text.startswith(STEP_WORDS[step]) for step, text in steps)


def test_every_step_of_the_verifier_has_words() -> None:
    pattern = re.compile(r'"((?:service|tdx|snp|nvidia|nras|log|ccel|dstack)/[0-9][0-9a-z.]*)"')
    found = {name for path in _SOURCES.glob("*.py") for name in pattern.findall(path.read_text())}
    assert found - set(STEP_WORDS) == set()


# --- JSON and EAR ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("profile", ["audit", "strict"])
def test_json_is_one_object_with_outcome_problem_and_ear(
    cli: Cli, tmp_path: Path, kind: str, profile: str
) -> None:
    files = write(service(kind), tmp_path)
    seen = cli("verify", files.bundle, *files.trust, "--policy", profile, "--json")
    (event,) = seen.events
    accepted = profile == "audit"
    assert event["event"] == "result"
    assert event["outcome"] == ("accepted" if accepted else "rejected")
    assert event["exit"] == seen.code == (0 if accepted else 10)
    assert event["simulated"] is True
    assert event["sha256"] == hashlib.sha256(files.bundle.read_bytes()).hexdigest()
    assert (event["problem"] is None) is accepted
    assert event["ear"]["confide"]["accepted"] is accepted
    if not accepted:
        assert event["problem"]["findings"]
        assert all(f["reason"] and f["step"] for f in event["problem"]["findings"])
        assert event["problem"]["advice"]


def test_json_can_explain_itself(cli: Cli, near: Files) -> None:
    result = cli("verify", near.bundle, *near.look, "--json", "--explain").result
    assert set(result["explained"]) == {
        claim["name"] for claim in result["ear"]["confide"]["claims"]
    }


@pytest.mark.parametrize("kind", KINDS)
def test_ear_is_valid_and_its_tiers_follow_the_claims(cli: Cli, tmp_path: Path, kind: str) -> None:
    files = write(service(kind), tmp_path)
    seen = cli("verify", files.bundle, *files.look, "--ear")
    assert seen.code == 0
    ear = json.loads(seen.out)
    assert ear["eat_profile"] == "urn:confide:ear:v1"
    assert ear["submods"]
    names = {2: "affirming", 32: "warning", 96: "contraindicated", 0: "none"}
    for submodule in ear["submods"].values():
        vector = submodule["ear.trustworthiness-vector"]
        assert set(vector.values()) <= set(names)
        # Nobody lists the launch here, so nothing as a whole is affirming.
        if "configuration" in vector:
            assert submodule["ear.status"] != "affirming"
            assert vector["hardware"] == 2


def test_ear_of_a_refusal_says_so_and_exits_10(cli: Cli, near: Files) -> None:
    seen = cli("verify", near.bundle, "--policy", "audit", "--at", AT, "--ear")
    assert seen.code == 10
    ear = json.loads(seen.out)
    assert ear["confide"]["accepted"] is False
    assert all(
        s["ear.status"] == "contraindicated"
        for s in ear["submods"].values()
        if "confide.claims" in s
    )


def test_ear_of_garbage_is_an_error_object(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "garbage"
    path.write_bytes(b"garbage")
    seen = cli("verify", path, "--ear")
    assert seen.code == 30
    assert [event["kind"] for event in seen.events] == ["malformed"]


# --- genuine evidence -----------------------------------------------------------------------------

_GENUINE_AT = ("--at", "2025-07-04T10:16:31Z")


def test_a_genuine_quote_is_genuine(cli: Cli, vectors: Path) -> None:
    real = vectors / "tdx" / "real"
    words = ("--endorsements", real / "collateral-v4-uptodate.json", *_GENUINE_AT)
    quote = real / "quote-v4-uptodate.bin"
    seen = cli("verify", quote, *words, "--policy", "audit")
    assert seen.code == 0
    assert "SIMULATED" not in seen.out
    assert "endorsements hold until 2025-07-19" in seen.out
    assert cli("verify", quote, *words).code == 10
    forged = cli("verify", real / "quote-flip-mrtd.bin", *words, "--policy", "audit")
    assert forged.code == 10
    assert "quote-signature" in forged.out


def _pem(der: bytes) -> str:
    text = base64.b64encode(der).decode()
    lines = "\n".join(text[at : at + 64] for at in range(0, len(text), 64))
    return f"-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n"


def test_a_genuine_report_of_amd_is_genuine(cli: Cli, vectors: Path, tmp_path: Path) -> None:
    snp = vectors / "snp"
    leaf, chain = (snp / "leaf-milan-a.der").read_bytes(), (snp / "ask-ark-milan.pem").read_text()
    certificates = tmp_path / "amd.pem"
    certificates.write_text(_pem(leaf) + chain)
    words = ("--endorsements", certificates, "--at", "2026-07-01T00:00:00Z", "--policy", "audit")
    seen = cli("verify", snp / "report-milan-a.bin", *words)
    assert seen.code == 0
    assert "AMD SEV-SNP, Milan, VCEK" in seen.out
    forged = cli("verify", snp / "report-flip-measurement.bin", *words)
    assert forged.code == 10
    assert "report-signature" in forged.out
    certificates.write_text(_pem(leaf))
    assert cli("verify", snp / "report-milan-a.bin", *words).code == 30
    certificates.write_text(chain + _pem(leaf))
    assert cli("verify", snp / "report-milan-a.bin", *words).code == 10


@pytest.mark.parametrize("form", ["hex", "base64"])
def test_a_quote_may_be_text(cli: Cli, tmp_path: Path, form: str) -> None:
    files = write(service("bare"), tmp_path)
    path = tmp_path / "quote.txt"
    quote = cases.quote()
    path.write_bytes(quote.hex().encode() if form == "hex" else base64.b64encode(quote) + b"\n")
    assert cli("verify", path, *files.look, "--endorsements", files.bundle).code == 0


def _claims(seen: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = seen.result["ear"]["confide"]["claims"]
    return found


def _status(result: dict[str, Any], name: str) -> str:
    assert name in set(ClaimName)
    found = next(c for c in result["ear"]["confide"]["claims"] if c["name"] == name)
    return str(found["status"])


# --- the library ----------------------------------------------------------------------------------

_EXAMPLE = Path(__file__).parents[2] / "examples" / "verify_service.py"


def _example(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(_EXAMPLE), *(str(word) for word in words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_the_example_of_the_library_runs(near: Files, tmp_path: Path) -> None:
    alone = _example()
    assert (alone.returncode, alone.stderr) == (0, "")
    assert alone.stdout.startswith("ACCEPTED (SIMULATED)\n")
    assert re.search(r"^pass +freshness", alone.stdout, re.MULTILINE)
    refused = _example(near.bundle)
    assert (refused.returncode, refused.stderr) == (10, "")
    assert "refused: step " in refused.stdout
    policy = tmp_path / "mine.toml"
    policy.write_text(policy_text(near_case(), require=("hardware",)))
    assert _example(near.bundle, policy).returncode == 10
