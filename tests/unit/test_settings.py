"""What there is to set: defaults, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tcprepl.addresses import parse_address
from tcprepl.app.settings import registry_of
from tcprepl.config import BadConfig, build
from tcprepl.federation.service import OWN_STREAMS
from tcprepl.settings import Config
from tests.unit.test_config import TLS, TOKENS, faults


def test_a_database_is_a_url_and_its_password_is_not_shown() -> None:
    config = build({"data": "postgres://u:hunter2@h/d", "standby": True}, "x").config
    assert config.data is not None
    assert "hunter2" not in repr(config)
    with pytest.raises(BadConfig, match="data: found a value that is not shown; expected null, or"):
        build({"data": "mysql://h"}, "x")
    with pytest.raises(BadConfig, match=r"standby: found True; .*; expected data to be the URL"):
        build({"standby": True}, "x")


def test_defaults_are_loopback_and_embedded() -> None:
    """Without a file everything stays on this machine."""
    config = build({}, "none").config
    assert [str(a) for a in config.replication.listen] == ["127.0.0.1:9092"]
    assert [str(a) for a in config.http.listen] == ["127.0.0.1:9093"]
    assert config.data_directory == Path("tcprepl-data")
    assert config == Config()


@pytest.mark.parametrize("section", ["replication", "http"])
@pytest.mark.parametrize(
    ("address", "exposed"),
    [
        ("127.0.0.1:1", False),
        ("localhost:1", False),
        ("[::1]:1", False),
        ("0.0.0.0:1", True),
        ("[::]:1", True),
        ("example.com:1", True),
        ("tcp:1:backlog=5", True),
        ("tcp:1:interface=127.0.0.1", False),
        (r"tcp6:1:interface=\:\:1", False),
        ("tcp:1:interface=10.0.0.1", True),
        ("haproxy:tcp:1", True),
        ("unix:/tmp/x:mode=600", False),
        ("systemd:domain=INET:index=0", False),
    ],
)
def test_listeners_others_can_reach_are_refused(section: str, address: str, exposed: bool) -> None:
    """Off loopback there has to be TLS, or for HTTP a token."""
    raw: dict[str, Any] = {section: {"listen": address}}
    if not exposed:
        build(raw, "x")
        return
    (fault,) = faults(raw)
    assert fault.startswith(f"{section}.listen: found '{address}'; other machines can reach it")
    if section == "http":
        build({section: {"listen": address, "token": "secret"}}, "x")
    if parse_address(address).host is None:  # which has TLS of its own, or none
        assert faults({section: {"listen": address, "tls": TLS, **TOKENS[section]}})
    else:
        build({section: {"listen": address, "tls": TLS, **TOKENS[section]}}, "x")


def test_encryption_alone_does_not_guard_the_line() -> None:
    """Beside TLS there has to be a token, or a certificate that clients show."""
    certified = {**TLS, "client_ca": "ca.pem"}
    string = "ssl:1:privateKey=key.pem"
    for listen, tls, tokens, good in (
        ("0.0.0.0:1", TLS, {}, False),
        ("0.0.0.0:1", TLS, TOKENS["replication"], True),
        ("0.0.0.0:1", None, TOKENS["replication"], False),
        ("0.0.0.0:1", certified, {}, True),
        (string, None, {}, False),
        (string, None, TOKENS["replication"], True),
        (string, certified, {}, False),
        (f"{string}:interface=127.0.0.1", None, {}, True),
    ):
        raw = {"replication": {"listen": listen, "tls": tls, **tokens}}
        if good:
            build(raw, "x")
        else:
            assert "replication.tokens or replication.tls.client_ca" in faults(raw)[0]


def test_any_instance_may_stand_for_the_others() -> None:
    """``*`` is every instance that is not named."""
    assert build({"instances": {"*": "http://h:1"}}, "x").config.instances == {"*": "http://h:1"}
    with pytest.raises(BadConfig, match="instances"):
        build({"instances": {"a b": "http://h:1"}}, "x")


@pytest.mark.parametrize("name", ["typing", "push_rules"])
@pytest.mark.parametrize("durable", [True, None])
def test_an_extra_stream_is_none_that_is_built_in(name: str, durable: bool | None) -> None:
    """It would take the place of the built-in one, whose rows have a form."""
    given = name if durable is None else {"name": name, "durable": durable}
    (fault,) = faults({"streams": {"extra": ["mine", given]}})
    assert fault == (
        f"streams.extra.1.name: found '{name}'; this stream is built in; expected another name"
    )


def test_an_extra_stream_stands_once() -> None:
    (fault,) = faults({"streams": {"extra": ["mine", "other", "mine"]}})
    assert fault == (
        "streams.extra: found ['mine', 'other', 'mine']; mine stands twice, as extra.0 and "
        "extra.2; expected each name once"
    )


def test_what_is_built_in_is_what_a_process_knows() -> None:
    for name in set(registry_of(Config()).names()) - set(OWN_STREAMS):
        assert faults({"streams": {"extra": [name]}})


@pytest.mark.parametrize(
    ("section", "listen", "told"),
    [
        ({"tokens": [{}]}, "0.0.0.0:1", True),
        ({"tokens": [{}]}, "tcp:1:backlog=5", True),
        ({"tokens": [{}], "tls": TLS}, "0.0.0.0:1", False),
        ({"tokens": [{}], "tls": TLS}, "tcp:1:backlog=5", True),
        ({"tls": {}}, "0.0.0.0:1", False),
        ({"tls": {}}, "tcp:1:backlog=5", True),
        ({"tls": {}, "tokens": [{}]}, "tcp:1:backlog=5", True),
        ({"tls": {}, "tokens": [{}]}, "ssl:1:privateKey=k", False),
        ({"tls": {}}, "127.0.0.1:1", False),
    ],
)
def test_a_listener_is_judged_though_what_guards_it_has_faults(
    section: dict[str, Any], listen: str, told: bool
) -> None:
    """Told unless what has faults could have guarded it."""
    found = faults({"replication": {**section, "listen": listen}})
    assert any(fault.startswith("replication.listen: ") for fault in found) is told


def test_a_standby_without_a_database_is_told_with_all_others() -> None:
    found = faults({"standby": True, "log": {"level": "loud"}})
    assert [fault.partition(":")[0] for fault in found] == ["standby", "log.level"]
    assert faults({"standby": True, "data": "mysql://h"}) != found


def test_a_stream_of_the_federation_may_be_named_as_extra() -> None:
    """Files of earlier releases do."""
    made = Config.model_validate({"streams": {"extra": ["to_device_messages"]}})
    assert [extra.name for extra in made.streams.extra] == ["to_device_messages"]
