"""Off this machine: TLS with certificates on both sides, sockets in the file system, tokens."""

from __future__ import annotations

import signal
import socket
import ssl
from pathlib import Path

import pytest
import trustme

from tests.harness import start, tcprepl
from tests.ports import free_port

ROW = '["!r:example.com",["@a:example.com"]]'


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    """A private authority, with a server's and a client's certificate in files."""
    authority = trustme.CA()
    for name in ("server", "client"):
        issued = authority.issue_cert("localhost" if name == "server" else "worker.example")
        issued.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
    (tmp_path / "trusted").mkdir()
    authority.cert_pem.write_to_path(tmp_path / "trusted" / "ca.pem")
    return authority


def test_line_protocol_over_tls_for_those_we_know(tmp_path: Path, authority: trustme.CA) -> None:
    """A listener for everybody admits who shows a certificate of ours, and nobody else."""
    port, http = free_port(), free_port()
    config = tmp_path / "tcprepl.yaml"
    config.write_text(
        f"""
        server_name: example.com
        data_directory: null
        replication:
          listen: 0.0.0.0:{port}
          tls:
            certificate: {tmp_path}/server.pem
            private_key: {tmp_path}/server.key
            client_ca: {tmp_path}/trusted/ca.pem
        http: {{listen: "127.0.0.1:{http}"}}
        """,
        encoding="utf-8",
    )
    with start(tmp_path, "serve", "--config", str(config)) as server:
        server.wait_for_output("serve.ready")
        assert "nc " not in server.stdout
        assert tcprepl("publish", "typing", ROW, "--to", f"127.0.0.1:{http}").returncode == 0
        address = (
            f"tls:localhost:{port}:trustRoots={tmp_path}/trusted"
            f":certificate={tmp_path}/client.pem:privateKey={tmp_path}/client.key"
        )
        done = tcprepl("tail", "--since", "start", "--until-head", "--from", address)
        assert done.stdout == f"RDATA typing master 1 {ROW}\n", done.stderr

        stranger = ssl.create_default_context(cafile=str(tmp_path / "trusted" / "ca.pem"))
        with socket.create_connection(("127.0.0.1", port), 30) as plain:
            assert b"SERVER" not in said_to(plain, stranger)
        with socket.create_connection(("127.0.0.1", port), 30) as plain:
            plain.sendall(b"REPLICATE\n")
            assert b"SERVER" not in said_to(plain, None)
        assert server.stop() == 0


def said_to(plain: socket.socket, context: ssl.SSLContext | None) -> bytes:
    """Return what comes back, over TLS or in plain, until the other side hangs up."""
    said = b""
    try:
        talking = context.wrap_socket(plain, server_hostname="localhost") if context else plain
        with talking:
            while piece := talking.recv(1000):
                said += piece
    except (ssl.SSLError, ConnectionError):
        return said
    return said


def test_line_protocol_on_a_socket_file(tmp_path: Path, socket_directory: Path) -> None:
    """``unix:`` with a mode needs no port and no password."""
    path = socket_directory / "repl.sock"
    http = free_port()
    args = ["--data", str(tmp_path / "data"), "--http", f"127.0.0.1:{http}"]
    with start(tmp_path, "serve", "--listen", f"unix:{path}:mode=600", *args) as server:
        server.wait_for_output("serve.ready")
        assert path.stat().st_mode & 0o777 == 0o600
        assert tcprepl("publish", "typing", ROW, "--to", f"127.0.0.1:{http}").returncode == 0
        done = tcprepl("positions", "--from", f"unix:{path}")
        assert "typing master 1" in done.stdout, done.stderr
        assert server.stop() == 0


def test_https_that_is_trusted(
    tmp_path: Path, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command says what to set when it does not know who signed a certificate."""
    http = free_port()
    config = tmp_path / "tcprepl.yaml"
    config.write_text(
        f"""
        data_directory: null
        replication: {{listen: "127.0.0.1:{free_port()}"}}
        http:
          listen: 127.0.0.1:{http}
          tls: {{certificate: {tmp_path}/server.pem, private_key: {tmp_path}/server.key}}
        """,
        encoding="utf-8",
    )
    with start(tmp_path, "serve", "--config", str(config)) as server:
        server.wait_for_output("serve.ready")
        url = f"https://localhost:{http}"
        refused = tcprepl("publish", "typing", ROW, "--to", url)
        assert refused.returncode == 1
        assert "certificate is not trusted" in refused.stderr
        assert "SSL_CERT_FILE" in refused.stderr
        monkeypatch.setenv("SSL_CERT_FILE", f"{tmp_path}/trusted/ca.pem")
        done = tcprepl("publish", "typing", ROW, "--to", url)
        assert (done.stdout, done.returncode) == ("typing master 1\n", 0), done.stderr
        assert server.stop() == 0
        assert "level=warning" not in server.stderr, server.stderr


@pytest.mark.timeout(300)
@pytest.mark.parametrize("environment", ["another", "the same"])
def test_the_authorities_of_a_context_count(
    tmp_path: Path, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, environment: str
) -> None:
    """They alone, over both protocols, whatever the environment says; errors name their file."""
    right, wrong = tmp_path / "trusted" / "ca.pem", tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(wrong)
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.setenv(name, str(wrong if environment == "another" else right))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    port, http = free_port(), free_port()
    tls = f"tls: {{certificate: {tmp_path}/server.pem, private_key: {tmp_path}/server.key}}"
    config = tmp_path / "tcprepl.yaml"
    config.write_text(
        f"""
        server_name: example.com
        data_directory: null
        replication: {{listen: "127.0.0.1:{port}", {tls}}}
        http: {{listen: "127.0.0.1:{http}", {tls}}}
        """,
        encoding="utf-8",
    )
    lines, url = f"tls:localhost:{port}", f"https://localhost:{http}"
    with start(tmp_path, "serve", "--config", str(config)) as server:
        server.wait_for_output("serve.ready")
        assert tcprepl("context", "add", "web", "--to", url, "--ca", str(right)).returncode == 0
        both = ("--from", lines, "--to", f"tcprepl://{lines}", "--ca", str(right))
        assert tcprepl("context", "add", "lines", *both).returncode == 0
        for token, name in enumerate(("web", "lines"), 1):
            done = tcprepl("--context", name, "publish", "typing", ROW)
            assert done.stdout == f"typing master {token}\n", done.stderr
        done = tcprepl("--context", "lines", "positions", "typing")
        assert done.stdout == "typing master 2\n", done.stderr

        for name in ("web", "lines"):
            tcprepl("context", "add", name, "--ca", str(wrong))
        for words in (
            ("web", "publish", "typing", ROW),
            ("lines", "publish", "typing", ROW),
            ("lines", "positions"),
        ):
            done = tcprepl("--context", *words)
            assert done.returncode == 1
            assert "its certificate is not trusted" in done.stderr
            assert (
                f"trusts the authorities in {wrong}: tcprepl context add {words[0]} --ca FILE"
                in (done.stderr)
            )
            assert "SSL routines" not in done.stderr
        wrong.write_text("nothing\n")
        for name in ("web", "lines"):
            done = tcprepl("--context", name, "publish", "typing", ROW)
            assert done.returncode == 2
            assert f"{wrong}: expected PEM with certificates" in done.stderr
        wrong.unlink()
        for name in ("web", "lines"):
            done = tcprepl("--context", name, "publish", "typing", ROW)
            assert done.returncode == 2
            assert f"{wrong}: cannot be read: No such file" in done.stderr
        assert server.stop() == 0


def test_http_token(tmp_path: Path) -> None:
    """With a token configured, nobody publishes without it, and no log shows it."""
    port, http = free_port(), free_port()
    config = tmp_path / "tcprepl.yaml"
    config.write_text(
        f'http: {{listen: "127.0.0.1:{http}", token: s3cret-token}}\ndata_directory: null\n',
        encoding="utf-8",
    )
    args = ("serve", "--config", str(config), "--listen", f"127.0.0.1:{port}")
    with start(tmp_path, *args) as server:
        server.wait_for_output("serve.ready")
        to = ("--to", f"127.0.0.1:{http}")
        assert "answered 401" in tcprepl("publish", "typing", ROW, *to).stderr
        assert "answered 401" in tcprepl("publish", "typing", ROW, *to, "--token", "no").stderr
        done = tcprepl("publish", "typing", ROW, *to, "--token", "s3cret-token")
        assert done.stdout == "typing master 1\n"
        assert tcprepl("check", "health", *to).stdout == "OK: ready\n"
        done = tcprepl("check", "lag", *to, "--token", "s3cret-token")
        assert done.stdout == "OK: no peers\n", done.stdout
        assert server.stop() == 0
        assert "s3cret" not in server.stderr + server.stdout


@pytest.mark.timeout(600)
def test_off_loopback_with_tls_and_a_token(tmp_path: Path, authority: trustme.CA) -> None:
    """Each token does what it is for; without one nothing is read and nothing written."""
    port, http, relayed = free_port(), free_port(), free_port()
    secrets = {name: f"s3cret-of-the-{name}" for name in ("reader", "writer", "worker")}
    for name, secret in secrets.items():
        (tmp_path / name).write_text(f"{secret}\n", encoding="utf-8")
    (tmp_path / "wrong").write_text("s3cret-of-nobody-at-all\n", encoding="utf-8")
    rights = {
        "reader": "read: [typing]",
        "writer": "write: [typing]",
        "worker": "read: all, operate: true",
    }
    config = tmp_path / "tcprepl.yaml"

    def configure(*names: str) -> None:
        tokens = "".join(
            f"    - {{name: {name}, token_file: {tmp_path / name}, {rights[name]}}}\n"
            for name in names
        )
        config.write_text(
            f"server_name: example.com\ndata_directory: null\n"
            f"replication:\n  listen: 0.0.0.0:{port}\n"
            f"  tls: {{certificate: {tmp_path}/server.pem, private_key: {tmp_path}/server.key}}\n"
            + (f"  tokens:\n{tokens}" if tokens else "")
            + f'http: {{listen: "127.0.0.1:{http}"}}\n',
            encoding="utf-8",
        )

    def token(name: str) -> tuple[str, str]:
        return "--token-file", str(tmp_path / name)

    configure("reader", "writer", "worker")
    address = f"tls:localhost:{port}:trustRoots={tmp_path}/trusted"
    to, source = ("--to", address), ("--from", address)
    with start(tmp_path, "serve", "--config", str(config)) as server:
        server.wait_for_output("serve.ready")
        for arguments, expected in (
            (("tail", "typing", *source), "not allowed: REPLICATE needs a token that may read"),
            (("positions", *source, *token("wrong")), "AUTH: the token is not known here"),
            (("tail", "receipts", *source, *token("reader")), "reader may read typing here"),
        ):
            done = tcprepl(*arguments, timeout_s=300)
            assert (done.returncode, done.stdout) == (2, ""), done
            assert expected in done.stderr
            assert "s3cret" not in done.stderr
        for arguments, expected in (
            (("publish", "typing", ROW, *to), "not allowed: PRODUCER"),
            (("publish", "receipts", ROW, *to, *token("writer")), "writer may write typing here"),
            (("publish", "typing", ROW, "--to", f"127.0.0.1:{http}"), "answered 401"),
            (
                ("publish", "receipts", ROW, "--to", f"127.0.0.1:{http}", *token("writer")),
                "writer may write typing here",
            ),
        ):
            done = tcprepl(*arguments, timeout_s=300)
            assert (done.returncode, done.stdout) == (1, ""), done
            assert expected in done.stderr
        done = tcprepl("publish", "typing", ROW, *to, *token("writer"))
        assert done.stdout == "typing master 1\n", done.stderr
        done = tcprepl("publish", "typing", ROW, "--to", f"127.0.0.1:{http}", *token("writer"))
        assert done.stdout == "typing master 2\n", done.stderr
        done = tcprepl("tail", "--since", "start", "--until-head", *source, *token("reader"))
        rows = "".join(f"RDATA typing master {number} {ROW}\n" for number in (1, 2))
        assert done.stdout == rows, done.stderr
        with socket.create_connection(("127.0.0.1", port), 30) as plain:
            plain.sendall(b"AUTH s3cret-of-the-worker\nREPLICATE\n")
            assert b"SERVER" not in said_to(plain, None)

        relay_args = ("--upstream", address, "--server-name", "example.com", *token("worker"),
                      "--listen", f"127.0.0.1:{relayed}", "--http", f"127.0.0.1:{free_port()}",
                      "--data", "none")  # fmt: skip
        with (
            start(tmp_path, "relay", *relay_args) as relay,
            start(tmp_path, "tail", "--since", "start", *source, *token("reader")) as tail,
            start(tmp_path, "tail", "--since", "start", "--from", f"127.0.0.1:{relayed}") as last,
        ):
            tail.wait_for_lines(2)
            assert last.wait_for_lines(2) == rows.splitlines()
            configure("writer", "worker")
            server.send_signal(signal.SIGHUP)
            assert tail.wait() == 2
            assert "AUTH: the token of reader does not hold any more" in tail.stderr
            done = tcprepl("publish", "typing", ROW, *to, *token("writer"))
            assert done.stdout == "typing master 3\n", done.stderr
            last.wait_for_lines(3)
            # The relay's token is exchanged for another of its name, and it reads its file anew.
            (tmp_path / "worker").write_text("s3cret-of-the-worker-2\n", encoding="utf-8")
            server.send_signal(signal.SIGHUP)
            relay.wait_for_output("replication.client.disconnected")
            done = tcprepl("publish", "typing", ROW, *to, *token("writer"))
            assert done.stdout == "typing master 4\n", done.stderr
            last.wait_for_lines(4)
            assert relay.stop() == 0
            assert "s3cret" not in relay.stderr + relay.stdout + tail.stderr
        assert server.stop() == 0
        assert "s3cret" not in server.stderr + server.stdout
