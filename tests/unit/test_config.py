"""The configuration: defaults, all faults at once, Synapse's names, safe listeners."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tcprepl.access import ALL, Streams
from tcprepl.addresses import parse_address
from tcprepl.config import BadConfig, build, load, parse
from tcprepl.settings import Config

TOKEN = {"name": "w1", "token": "a-token-of-sixteen", "read": "all"}
#: What lets a listener leave loopback beside TLS.
TOKENS: dict[str, Any] = {"replication": {"tokens": [TOKEN]}, "http": {}}
TLS = {"certificate": "chain.pem", "private_key": "key.pem"}


def faults(raw: dict[str, Any]) -> list[str]:
    """Return the faults of settings that have some."""
    with pytest.raises(BadConfig) as caught:
        build(raw, "test.yaml")
    return caught.value.faults


def test_a_full_file_is_read() -> None:
    """Every section has its place, and units are understood."""
    config = parse(
        """
        server_name: example.com
        instance: worker1
        data_directory: null
        replication:
          listen: ["unix:/run/tcprepl.sock:mode=660", "[::1]:9092"]
          dialect: 1.13
          max_connections: 10
        http: {listen: "localhost:0", token: s3cret, max_body_bytes: 2M,
               client_tokens: [{token: t0ken, user_id: "@a:example.com"}], hosts: [box]}
        streams:
          retention: {age: 12h, bytes: 3GiB, rows: 1000}
          retention_of: {typing: {age: 90}}
          extra: [mine, {name: loud, durable: false}]
        federation: {senders: [fed1, fed2], signing_key: signing.key}
        redis: {url: "redis://127.0.0.1:6379"}
        instances: {master: "http://127.0.0.1:9093"}
        log: {level: debug, format: json}
        """,
        "full.yaml",
    ).config
    assert config.data_directory is None
    assert config.replication.dialect == "1.13"
    assert config.replication.listen[1].host == "::1"
    assert config.http.token is not None
    assert config.http.token.get_secret_value() == "s3cret"
    assert config.http.max_body_bytes == 2 * 2**20
    assert config.streams.retention.age == 12 * 3600
    assert config.streams.retention.bytes == 3 * 2**30
    assert config.streams.retention_of["typing"].age == 90
    assert [(s.name, s.durable) for s in config.streams.extra] == [("mine", True), ("loud", False)]
    assert config.http.client_tokens[0].user_id == "@a:example.com"
    assert "s3cret" not in repr(config)
    assert "t0ken" not in repr(config)


def test_all_faults_are_told_at_once() -> None:
    """Each fault has its key path, the value found and what was expected."""
    found = faults(
        {
            "server_nam": "example.com",
            "instance": "a b",
            "replication": {"dialect": "2.0", "listen": 5},
            "http": {"token": 5, "listen": "nonsense", "tls": {"certificate": "x"}},
            "streams": {
                "retention": {"age": "soon", "bytes": "much", "rows": 0},
                "extra": [{"name": "b", "durabel": True}],
            },
            "log": {"level": "loud"},
            "federation": {"resolve": {"a": "unix:/x", "b": "c"}, "allowed_addresses": ["10.0"]},
        }
    )
    assert sorted(found) == [
        "federation.allowed_addresses.0: found '10.0'; expected a list of address ranges such "
        "as 10.0.0.0/8",
        "federation.resolve.a: found 'unix:/x'; expected HOST:PORT for each server name that is "
        "not looked up",
        "federation.resolve.b: found 'c'; expected HOST:PORT for each server name that is not "
        "looked up",
        "http.listen: found 'nonsense'; expected HOST:PORT or a Twisted endpoint string, "
        "or a list of them",
        "http.tls.private_key: is missing; expected the path of a PEM file with the private key",
        "http.token: found a value that is not shown; expected a text; better read from a file "
        "that only the server may read",
        "instance: found 'a b'; expected a name without spaces, at most 255 characters",
        "log.level: found 'loud'; expected debug, info, warning or error",
        "replication.dialect: found '2.0'; expected auto, 1.13 or 1.22",
        "replication.listen: found 5; expected HOST:PORT or a Twisted endpoint string, "
        "or a list of them",
        "server_nam: unknown key; did you mean server_name?",
        "streams.extra.0.durabel: unknown key; did you mean durable?",
        "streams.retention.age: found 'soon'; expected a number of seconds above 0, or a text "
        "such as 30s, 10m, 12h, 7d",
        "streams.retention.bytes: found 'much'; expected a number of bytes above 0, or a text "
        "such as 64M or 2G",
        "streams.retention.rows: found 0; expected a whole number above 0",
    ]


def test_error_text_names_the_file_and_counts() -> None:
    """The whole message is what check-config prints."""
    with pytest.raises(BadConfig) as caught:
        parse("zzz: 1\n", "x.yaml")
    assert str(caught.value) == "x.yaml: 1 fault\n  zzz: unknown key"


def test_long_values_are_shortened() -> None:
    """A fault stays readable whatever was in the file."""
    (fault,) = faults({"log": {"level": "x" * 500}})
    assert len(fault) < 160


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [", "line 1, column 5: not YAML"),
        ("a: \x00", "not YAML"),
        ("a: " + "9" * 5_000, "not YAML"),
        ("a: 2001-99-99", "not YAML"),
        ("a: " + "[" * 5_000, "not YAML"),
        ("- a\n", "expected a section with keys"),
        ("", None),
    ],
)
def test_what_is_not_a_section_is_refused(text: str, expected: str | None) -> None:
    """YAML errors give the place; an empty file is all defaults."""
    if expected is None:
        assert parse(text, "x").config == Config()
        return
    with pytest.raises(BadConfig, match=expected) as caught:
        parse(text, "x")
    assert not [fault for fault in caught.value.faults if "\n" in fault]


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file and one that is not text are errors of the configuration."""
    with pytest.raises(BadConfig, match="No such file"):
        load(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(BadConfig, match="not UTF-8"):
        load(tmp_path / "binary.yaml")


def test_overrides_are_stronger_than_the_file(tmp_path: Path) -> None:
    """Options of the command line win; those not given do not count."""
    path = tmp_path / "x.yaml"
    path.write_text("server_name: a\nreplication: {listen: '127.0.0.1:1'}\n", encoding="utf-8")
    config = load(
        path, {"server_name": "b", "replication.dialect": "1.13", "http.listen": None}
    ).config
    assert config.server_name == "b"
    assert config.replication.dialect == "1.13"
    assert str(config.replication.listen[0]) == "127.0.0.1:1"


def test_tokens_and_their_rights(tmp_path: Path) -> None:
    """From files, by name; streams are a list, or all."""
    (tmp_path / "t").write_text("aaaabbbbccccdddd\n")
    raw = {
        "tokens": [
            {"name": "w1", "token_file": str(tmp_path / "t"), "read": "all", "write": ["a", "b"]},
            {"name": "w1", "token": "x" * 16, "inspect": "all", "operate": True},
        ],
        "anonymous": {"read": ["typing"]},
    }
    config = build({"replication": raw}, "x").config.replication
    assert config.tokens[0].token.get_secret_value() == "aaaabbbbccccdddd"
    assert config.tokens[0].read == ALL
    assert config.tokens[0].write == Streams(frozenset("ab"))
    assert config.tokens[1].operate
    assert config.anonymous is not None
    assert "typing" in config.anonymous.read
    assert "aaaabbbb" not in repr(config)


def test_faults_of_tokens(tmp_path: Path) -> None:
    """Each is named, and no token is shown."""
    tokens = [
        {"name": "a b", "token": "hush" * 4},
        {"name": "anonymous", "token": "hush2" * 4},
        {"name": "c", "token": "hush"},
        {"name": "d", "token": "hush " * 4},
        {"name": "e", "token": "hush3" * 4, "read": "typing"},
        {"name": "f", "token": "hush4" * 4, "write": ["a b"]},
        {"name": "g", "token_file": str(tmp_path / "absent")},
        {"token": "hush5" * 4, "roles": []},
    ]
    found = faults({"replication": {"tokens": tokens}})
    assert [fault.split(":")[0] for fault in found] == [
        "replication.tokens.6.token_file",
        "replication.tokens.0.name",
        "replication.tokens.1.name",
        "replication.tokens.2.token",
        "replication.tokens.3.token",
        "replication.tokens.4.read",
        "replication.tokens.5.write",
        "replication.tokens.7.name",
        "replication.tokens.7.roles",
    ]
    assert "hush" not in str(found)
    twice = [{"name": "a", "token": "hush" * 4}, {"name": "b", "token": "hush" * 4}]
    (fault,) = faults({"replication": {"tokens": twice}})
    assert "one stands twice, with a and b" in fault
    assert "hush" not in fault


@pytest.mark.parametrize(
    "raw",
    [
        {"http": {"client_tokens": {"token": "hush"}}},
        {"http": [{"token": "hush"}]},
        {"replication": {"tokens": {"token": "hush"}}},
        {"replication": {"anonymous": [[{"token": "hush"}]]}},
    ],
)
def test_what_stands_in_the_wrong_place_is_not_shown(raw: dict[str, Any]) -> None:
    """A section may have secrets in it wherever it stands."""
    assert "hush" not in str(faults(raw))


def test_a_broken_guard_is_told_once() -> None:
    """A tls section with a fault is not reported as missing as well."""
    (fault,) = faults({"replication": {"listen": "0.0.0.0:1", "tls": {**TLS, "x": 1}}})
    assert fault == "replication.tls.x: unknown key"


@pytest.mark.parametrize("text", ["9092", ":9092", "a b:1", "host:99999", "", "host:port x"])
def test_what_is_no_address(text: str) -> None:
    """Neither HOST:PORT nor an endpoint string."""
    if text == "host:port x":  # an endpoint string as far as we can tell; Twisted decides
        assert parse_address(text).host is None
        return
    with pytest.raises(ValueError, match="expected HOST:PORT"):
        parse_address(text)


def test_a_key_that_stands_twice_is_a_fault() -> None:
    """The last one would win in silence; merged sections are no such thing."""
    text = "http:\n  token: a\n  token: b\nserver_name: x\nlog: {level: loud}\nserver_name: y\n"
    with pytest.raises(BadConfig) as caught:
        parse(text, "x.yaml")
    assert caught.value.faults == [
        "line 3: token stands twice; it is on line 2 already",
        "line 6: server_name stands twice; it is on line 4 already",
        "log.level: found 'loud'; expected debug, info, warning or error",
    ]
    merged = "log: &log {level: debug}\nhttp: {hosts: [a, a]}\n"
    assert parse(merged, "x.yaml").config.log.level == "debug"


def test_every_key_that_stands_twice_is_told(tmp_path: Path) -> None:
    """However deep it stands, also within one line, and within what stands twice itself."""
    path = tmp_path / "x.yaml"
    path.write_text(
        "http: {token: a, token: b, token: c}\n"
        "federation:\n  resolve:\n    a: 'x:1'\n    a: 'x:2'\n  resolve: {b: 'x:1', b: 'x:1'}\n"
        "replication: {tokens: [{name: w, name: v, token: aaaabbbbccccdddd}]}\n",
        encoding="utf-8",
    )
    with pytest.raises(BadConfig) as caught:
        load(path)
    told = [fault for fault in caught.value.faults if "stands twice" in fault]
    assert [fault.split(" stands")[0] for fault in told] == [
        "line 1: token",
        "line 1: token",
        "line 5: a",
        "line 6: resolve",
        "line 6: b",
        "line 7: name",
    ]


def test_a_byte_order_mark_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xef\xbb\xbfserver_name: x\n")
    assert load(tmp_path / "x.yaml").config.server_name == "x"


def test_secrets_from_files(tmp_path: Path) -> None:
    """Each secret may stand in a file of its own; white space around it does not count."""
    for name in ("token", "secret", "client"):
        (tmp_path / name).write_text(f"\ufeff{name}-text\n", encoding="utf-8")
    raw = {
        "listen": "0.0.0.0:1",
        "token_file": str(tmp_path / "token"),
        "replication_secret_file": str(tmp_path / "secret"),
        "client_tokens": [{"token_file": str(tmp_path / "client")}],
    }
    http = build({"http": raw}, "x").config.http
    assert http.token is not None
    assert http.replication_secret is not None
    assert http.token.get_secret_value() == "token-text"
    assert http.replication_secret.get_secret_value() == "secret-text"
    assert http.client_tokens[0].token.get_secret_value() == "client-text"
    assert "token" not in raw


def test_relative_paths_begin_where_the_process_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not where the file is: the documentation says so."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "c.yaml").write_text("http: {token_file: token}", encoding="utf-8")
    (tmp_path / "token").write_text("there", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    found = load(Path("etc/c.yaml")).config.http.token
    assert found is not None
    assert found.get_secret_value() == "there"


def test_faults_of_secret_files(tmp_path: Path) -> None:
    """Absent, empty, not text, or beside the secret itself: one fault each, by its key."""
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    found = faults(
        {
            "http": {
                "listen": "0.0.0.0:1",
                "token_file": str(tmp_path / "absent"),
                "replication_secret": "a",
                "replication_secret_file": str(tmp_path / "empty"),
                "client_tokens": [
                    {"token_file": str(tmp_path / "empty")},
                    {"token_file": str(tmp_path / "binary")},
                    "odd",
                ],
            }
        }
    )
    assert [line.split(":")[0] for line in found[:4]] == [
        "http.token_file",
        "http.replication_secret_file",
        "http.client_tokens.0.token_file",
        "http.client_tokens.1.token_file",
    ]
    assert len(found) == 5
