"""Files and streams that a configuration names and that are not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trustme

from tcprepl.app.checking import faults_for_serve, is_shared, missing_files, unknown_streams
from tests.unit.app.test_tls import issue

pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")


@pytest.mark.parametrize("section", ["replication", "http", "bus"])
def test_each_file_of_tls_that_cannot_be_read_is_named(section: str, tmp_path: Path) -> None:
    tls = {key: str(tmp_path / key) for key in ("certificate", "private_key", "client_ca")}
    assert missing_files({section: {"tls": tls}}) == [
        f"{section}.tls.{key}: {path}: cannot be read: No such file or directory"
        for key, path in tls.items()
    ]
    # and one is, whatever form the others have
    (fault,) = missing_files({section: {"tls": {"certificate": 5, "private_key": "/absent"}}})
    assert fault.startswith(f"{section}.tls.private_key: /absent: ")
    (fault,) = missing_files({section: {"tls": {"private_key": "a\0b"}}})
    assert "cannot be read" in fault


def test_what_the_files_of_tls_hold_is_looked_at(tmp_path: Path) -> None:
    authority = trustme.CA()
    ours, other = issue(tmp_path / "a", authority), issue(tmp_path / "b", authority)

    def look(key: Path) -> list[str]:
        tls = {"certificate": str(ours.certificate), "private_key": str(key)}
        return missing_files({"http": {"tls": tls}})

    assert look(ours.private_key) == []
    (fault,) = look(other.private_key)
    assert fault.startswith(f"http.tls: {ours.certificate}: its first certificate is not that of")


@pytest.mark.parametrize("section", ["replication", "http", "bus"])
def test_files_of_endpoint_strings_are_looked_at(section: str, tmp_path: Path) -> None:
    ours, other = (issue(tmp_path / name, trustme.CA()) for name in "ab")
    absent = tmp_path / "no:where"
    key = f"ssl:1:privateKey={ours.private_key}"

    def look(*listen: Any) -> list[str]:
        return missing_files({section: {"listen": listen[0] if len(listen) == 1 else listen}})

    good = f"{key}:certKey={ours.certificate}:extraCertChain={other.certificate}"
    assert look("unix:/run/x", good, "h:1", f"haproxy:{good}", 5, "rubbish") == []
    escaped = str(absent).replace(":", r"\:")
    text = f"{key}:certKey={escaped}:extraCertChain={escaped}:dhParameters={escaped}"
    assert look(good, text) == [
        f"{section}.listen: {text}: {name}: {absent}: cannot be read: No such file or directory"
        for name in ("certKey", "extraCertChain", "dhParameters")
    ]
    # by its place; and one file for both is told once
    (fault,) = look(f"haproxy:ssl:1:{escaped}")
    assert fault.startswith(f"{section}.listen: haproxy:ssl:1:{escaped}: privateKey: {absent}: ")
    for held in (f"certKey={other.certificate}", f"certKey={ours.private_key}"):
        (fault,) = look(f"{key}:{held}")
        assert fault.startswith(f"{section}.listen: {key}:{held}: not an endpoint to listen on: ")


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    absent = str(tmp_path / "absent")
    bus = {"password_file": absent, "users": {"w1": str(tmp_path / "empty"), "w2": 5}}
    assert missing_files({"federation": {"ca": absent}, "bus": bus}) == [
        f"federation.ca: {absent}: cannot be read: No such file or directory",
        f"bus.password_file: {absent}: cannot be read: No such file or directory",
        f"bus.users.w1: {tmp_path / 'empty'}: is empty; expected a secret",
    ]


@pytest.mark.parametrize("given", [{}, {"http": 5}, {"http": {"tls": None}}, {"bus": {"tls": {}}}])
def test_what_has_another_form_is_passed_over(given: dict[str, Any]) -> None:
    assert missing_files(given) == []
    assert unknown_streams({"streams": 5, **given}) == []


def test_streams_that_no_server_has() -> None:
    streams = {"retention_of": {"cachez": {}, "mine": {}, "typing": {}, "received_edus": {}}}
    found = unknown_streams({"streams": {"extra": ["mine"], **streams}})
    assert found == [
        "streams.retention_of.cachez: there is no such stream, neither built in nor in "
        "streams.extra; did you mean caches?"
    ]
    assert len(unknown_streams({"streams": streams})) == 2
    # which streams there are cannot be said
    assert unknown_streams({"streams": {"extra": 5, **streams}}) == []


def test_rights_to_streams_that_no_server_has() -> None:
    """Such a token was taken, and refused what it was made for."""
    tokens = [{"read": "all", "write": ["typing", "tpying"]}, 5, {"inspect": ["caches"], "read": 5}]
    rights = {"tokens": tokens, "anonymous": {"read": ["typing", "mine"]}}
    ends = "there is no such stream, neither built in nor in streams.extra"
    assert unknown_streams({"replication": rights}) == [
        f"replication.anonymous.read: mine: {ends}",
        f"replication.tokens.0.write: tpying: {ends}; did you mean typing?",
    ]
    extra = {"streams": {"extra": ["mine", "tpying"]}}
    assert unknown_streams({"replication": rights, **extra}) == []
    assert unknown_streams({"replication": {"tokens": 5, "anonymous": None}}) == []


def test_who_meets_streams_of_others_is_not_refused() -> None:
    streams = {"streams": {"retention_of": {"cachez": {}}}}
    assert faults_for_serve(streams)
    for other in ({"bus": {"replay_rows": 1}}, {"instances": {"master": "http://h:1"}}):
        assert is_shared({**streams, **other})
        assert faults_for_serve({**streams, **other}) == []
