"""HTTP over a Unix socket, and secrets that stand in files, as a person uses them."""

from __future__ import annotations

from pathlib import Path

from tests.harness import start, tcprepl


def test_every_command_that_speaks_http(tmp_path: Path, socket_directory: Path) -> None:
    """By ``http://unix:/PATH``, with the token from a file."""
    socket, token = socket_directory / "http.sock", tmp_path / "token"
    token.write_text("hush\n", encoding="utf-8")
    config = tmp_path / "x.yaml"
    config.write_text(f"server_name: example.com\nhttp: {{token_file: {token}}}\n")
    url = f"http://unix:{socket}"
    with start(
        tmp_path, "serve", "--config", str(config), "--http", f"unix:{socket}:mode=600",
        "--listen", "127.0.0.1:0", "--data", str(tmp_path / "data"),
    ) as server:  # fmt: skip
        server.wait_for_output("serve.ready")
        common = ("--token-file", str(token))
        row = '["!r:example.com", []]'
        done = tcprepl("publish", "typing", row, "--to", url, *common)
        assert (done.returncode, done.stdout) == (0, "typing master 1\n"), done.stderr
        for args in (
            ("typing", "start", "!r:example.com", "@a:example.com", "--to", url),
            ("presence", "set", "@a:example.com", "online", "--to", url),
            ("check", "health", "--to", url),
            ("check", "lag", "--to", url),
            ("top", "--once", "--to", url),
            ("poll", "typing", "--since", "start", "--count", "1", "--url", url),
        ):
            done = tcprepl(*args, *common)
            assert done.returncode == 0, (args, done.stderr)
        assert tcprepl("publish", "typing", row, "--to", url).returncode == 1
        assert server.stop() == 0
    done = tcprepl("publish", "typing", row, "--to", url, *common)
    assert done.returncode == 1
    assert f"{url} does not answer: there is no such socket" in done.stderr
