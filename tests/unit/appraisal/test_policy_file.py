"""Policies as files: what is refused, and what a profile fills in."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import UTC, datetime

import pytest

from confide.appraisal.policy_file import parse_policy
from confide.appraisal.policy_words import explain
from confide.appraisal.service_policy import rules_of
from confide.appraisal.service_profiles import AUDIT, PROFILES, STRICT
from confide.appraisal.tdx_policy import UnsafeAny
from confide.cli.policy import toml_of
from confide.errors import FormatError, Reason

HEAD = 'type = "confide/policy/v1"\nname = "mine"\n'
PROFILED = HEAD + 'profile = "strict"\n'


def test_a_profile_fills_in_what_the_file_does_not_say() -> None:
    register = "ab" * 48
    policy = parse_policy(PROFILED + f'[tdx]\nmrtd = ["{register}"]\n')
    assert policy.tdx == replace(STRICT.tdx, mrtd=frozenset({register}))
    assert policy.nvidia == STRICT.nvidia
    assert policy.name == "mine"
    assert not policy.unsafe_simulated


def test_an_open_list_is_said_aloud() -> None:
    policy = parse_policy(PROFILED + '[tdx]\nmrowner = "unsafe-any"\n')
    assert policy.tdx.mrowner == UnsafeAny()
    assert "tdx.mrowner: any" in policy.relaxations
    assert "tdx.mrowner: any" not in STRICT.relaxations


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_a_policy_written_out_in_full_is_the_same_policy(name: str) -> None:
    written = toml_of(PROFILES[name])
    assert "profile" not in written
    again = parse_policy(written)
    assert again == PROFILES[name]
    assert again.digest == PROFILES[name].digest


def test_without_a_profile_every_field_is_asked_for() -> None:
    written = toml_of(STRICT)
    lines = written.splitlines()
    wanted = [at for at, line in enumerate(lines) if " = " in line]
    for at in wanted:
        shortened = "\n".join(lines[:at] + lines[at + 1 :])
        with pytest.raises(FormatError) as caught:
            parse_policy(shortened)
        assert caught.value.reason is Reason.POLICY_FORMAT


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        'type = "confide/policy/v2"\nname = "x"\nprofile = "strict"\n',
        HEAD + 'profile = "lax"\n',
        HEAD + "profile = 1\n",
        'type = "confide/policy/v1"\nname = ""\nprofile = "strict"\n',
        'type = "confide/policy/v1"\nname = "a\\u202eb"\nprofile = "strict"\n',
        PROFILED + "[tpm]\n",
        PROFILED + "tdx = 3\n",
        PROFILED + "[tdx]\nmrdt = []\n",
        PROFILED + '[tdx]\nmrtd = "any"\n',
        PROFILED + '[tdx]\nmrtd = ["AB"]\n',
        PROFILED + f'[tdx]\nmrtd = ["{"AB" * 48}"]\n',
        PROFILED + f'[tdx]\nmrtd = ["{"ab" * 48}", "{"ab" * 48}"]\n',
        PROFILED + '[tdx]\ntcb_status = ["Revoked"]\n',
        PROFILED + "[tdx]\nmax_collateral_days = -1\n",
        PROFILED + "[tdx]\nmax_collateral_days = true\n",
        PROFILED + "[tdx]\nmax_collateral_days = 1.5\n",
        PROFILED + '[tdx]\nmax_collateral_days = "unsafe-any"\n',
        PROFILED + '[tdx]\nblocked_platforms = "unsafe-any"\n',
        PROFILED + "[tdx]\nunsafe_debug = 1\n",
        PROFILED + "[tdx]\nmin_root_crl_issued = 2026-01-01T00:00:00\n",
        PROFILED + "[tdx]\nmin_root_crl_issued = 2026-01-01\n",
        PROFILED + '[tdx]\nmin_root_crl_issued = "2026-13-01T00:00:00Z"\n',
        PROFILED + '[claims]\nrequire = ["everything"]\n',
        PROFILED + '[workload]\ndocuments = "unsafe-any"\n',
        PROFILED + '[workload]\nos_images = "unsafe-any"\n',
        PROFILED + '[provenance]\nidentities = "unsafe-any"\n',
        PROFILED + '[claims]\nrequire = ["platform"]\n',
        PROFILED + '[claims]\nrequire = "unsafe-any"\n',
        PROFILED + "unsafe_simulated = 1\n",
        PROFILED + f"[workload]\ndocuments = {['00' * 32] * 5000}\n",
        "x" * (1 << 21),
    ],
    ids=lambda text: text[-40:],
)
def test_what_is_not_a_policy_is_refused(text: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_policy(text)
    assert caught.value.reason is Reason.POLICY_FORMAT


def test_a_refusal_names_the_field() -> None:
    with pytest.raises(FormatError, match=r"tdx\.mrtd\[1\]"):
        parse_policy(PROFILED + f'[tdx]\nmrtd = ["{"ab" * 48}", "x"]\n')


def test_times_in_both_spellings() -> None:
    for text in ("2026-01-31T01:00:00+01:00", '"2026-01-31T00:00:00Z"'):
        policy = parse_policy(PROFILED + f"[tdx]\nmin_pck_crl_issued = {text}\n")
        assert policy.tdx.min_pck_crl_issued == datetime(2026, 1, 31, tzinfo=UTC)


def test_digests_tell_policies_apart() -> None:
    assert STRICT.digest != AUDIT.digest
    assert replace(STRICT, name="other").digest != STRICT.digest
    assert replace(STRICT, unsafe_simulated=True).digest != STRICT.digest


@pytest.mark.parametrize("policy", PROFILES.values(), ids=PROFILES)
def test_an_explanation_leaves_no_open_field_out(policy: object) -> None:
    assert isinstance(policy, type(STRICT))
    sentences = {sentence.field: sentence for sentence in explain(policy)}
    for name, section in policy.sections().items():
        for field in rules_of(section):
            if isinstance(getattr(section, field), UnsafeAny):
                assert sentences[f"{name}.{field}"].tone == "open"
    assert sentences["unsafe_simulated"].text == "no simulated roots"


def test_what_accepts_nothing_is_called_closed() -> None:
    sentences = {sentence.field: sentence for sentence in explain(STRICT)}
    assert sentences["workload.documents"].tone == "closed"
    assert "follow" not in sentences["workload.documents"].text
    assert sentences["tdx.mrtd"].tone == "plain"


def test_every_field_of_a_policy_has_a_rule() -> None:
    for section in STRICT.sections().values():
        assert rules_of(section).keys() == {item.name for item in fields(section)}  # type: ignore[arg-type]
