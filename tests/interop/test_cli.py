"""The commands against a real server, as a person uses them."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tcprepl.cli import recording
from tcprepl.streams.masking import without_access_tokens
from tests.harness import CAPTURE, ROOT, Lines, Server, start, tcprepl, wait_until
from tests.ports import free_port

ROW = '["!r:example.com",["@a:example.com"]]'


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A running server with data of its own."""
    with Server(tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server in which no test leaves anything: no row of any stream."""
    with Server(tmp_path_factory.mktemp("untouched")) as running:
        yield running


def rows_of_capture() -> list[tuple[str, object]]:
    """Return (stream, value) of each row of the real capture, in order."""
    return [
        (group.stream, json.loads(row))
        for group in recording.rows(recording.read(CAPTURE, bare=True))
        for row in group.rows
    ]


def rows_of_lines(lines: list[str]) -> list[tuple[str, object]]:
    """Return (stream, value) of each RDATA line."""
    return [
        (line.split(" ", 4)[1], json.loads(line.split(" ", 4)[4]))
        for line in lines
        if line.startswith("RDATA ")
    ]


def by_stream(rows: list[tuple[str, object]]) -> dict[str, list[object]]:
    """Return the rows of each stream, in order."""
    found: dict[str, list[object]] = {}
    for stream, row in rows:
        found.setdefault(stream, []).append(row)
    return found


def test_serve_says_what_to_type_next_and_it_works(untouched: Server) -> None:
    """Each command that the welcome shows runs as it stands."""
    text = wait_until(
        lambda: untouched.process.stdout if " tail " in untouched.process.stdout else None,
        "the welcome, which comes once it listens",
    )
    assert f"nc 127.0.0.1 {untouched.port}" in text
    publish = next(line for line in text.splitlines() if " publish " in line).strip()
    assert publish.endswith("""typing '["!room:example.com", ["@alice:example.com"]]'""")
    assert f"--to {untouched.url}" in publish
    assert any(
        line.strip() == f"tcprepl tail --from {untouched.address}" for line in text.splitlines()
    )


def test_publish_prints_a_token_for_each_row(server: Server) -> None:
    """Rows as arguments, on stdin, in a batch, and again with the same transaction id."""
    done = tcprepl("publish", "typing", ROW, ROW, "--to", server.url)
    assert (done.returncode, done.stdout) == (0, "typing master 1\ntyping master 2\n")
    done = tcprepl("publish", "typing", "--to", server.url, stdin=f"{ROW}\n\n{ROW}")
    assert done.stdout == "typing master 3\ntyping master 4\n"
    device = '["@a:example.com"]'
    for _ in range(2):
        done = tcprepl(
            "publish", "device_lists", device, device,
            "--batch", "--instance", "w1", "--transaction-id", "t", "--to", server.url,
        )  # fmt: skip
        assert done.stdout == "device_lists w1 1\ndevice_lists w1 1\n"


def test_publish_in_many_chunks(server: Server) -> None:
    """A long stdin goes in pieces, and every row gets its token."""
    done = tcprepl("publish", "typing", "--to", server.url, stdin=f"{ROW}\n" * 5_001)
    assert done.stdout.splitlines() == [f"typing master {n}" for n in range(1, 5_002)]
    assert tcprepl("publish", "typing", "--to", server.url, stdin="").stdout == ""


def test_publish_refuses_in_words(untouched: Server) -> None:
    """What does not fit is told with row, field, value and expectation; nothing is published."""
    done = tcprepl("publish", "typing", ROW, '["!r", 5]', "--to", untouched.url)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "answered 400" in done.stderr
    assert "Traceback" not in done.stderr
    done = tcprepl("publish", "typing", '["!r", ]', "--to", untouched.url)
    assert done.returncode == 1
    assert "row 1: not JSON at column 8" in done.stderr
    done = tcprepl("publish", "nonsense", "1", "--to", untouched.url)
    assert done.returncode == 2
    assert "nonsense" in done.stderr
    assert "typing master 0" in tcprepl("positions", "--from", untouched.address).stdout


def test_nobody_there() -> None:
    """A port without a server is one line and exit code 1."""
    port = free_port()
    for args in (
        ("publish", "typing", ROW, "--to", f"http://127.0.0.1:{port}"),
        ("positions", "--from", f"127.0.0.1:{port}"),
        ("tail", "--until-head", "--from", f"127.0.0.1:{port}"),
    ):
        done = tcprepl(*args)
        assert done.returncode == 1, args
        assert done.stderr.startswith("tcprepl: "), args
        assert "refused" in done.stderr.lower(), args
        assert f"127.0.0.1:{port} does not answer: connection refused" in done.stderr
        assert "is `tcprepl serve` running there?" in done.stderr
        assert done.stderr.count("\n") <= 2, done.stderr


@pytest.mark.parametrize("command", ["tail", "record", "watch", "relay", "federation-sender"])
def test_nobody_there_yet(command: str, tmp_path: Path) -> None:
    """Whoever waits says for whom, and what may be wrong."""
    where = f"127.0.0.1:{free_port()}"
    arguments = {
        "tail": ["--from", where],
        "record": ["x.rec", "--from", where],
        "watch": ["typing", "--from", where],
        "relay": ["--upstream", where, "--server-name", "x", "--listen", "127.0.0.1:0",
                  "--http", "127.0.0.1:0"],
        "federation-sender": ["--from", where],
    }[command]  # fmt: skip
    with start(tmp_path, command, *arguments) as process:
        process.wait_for_output(
            f"{where} does not answer: connection refused; is `tcprepl serve` running there"
        )
        assert process.stop() == 0
    assert not (tmp_path / "x.rec").exists()


def test_unknown_streams(server: Server, tmp_path: Path) -> None:
    """Every command that takes a stream refuses one that there is not, with the nearest name."""
    server.publish("typing", ["!r:a", []])
    recorded = tmp_path / "t.rec"
    for args in (
        ("tail", "tping", "--from", server.address),
        ("tail", "typing", "tping", "--until-head", "--from", server.address),
        ("tail", "tping", "--since", "1", "--from", server.address),
        ("record", str(recorded), "tping", "--until-head", "--from", server.address),
        ("record", str(recorded), "tping", "--from", server.address),
        ("positions", "tping", "--from", server.address),
        ("poll", "tping", "--url", server.url),
        ("poll", "tping", "--since", "7", "--url", server.url),
        ("publish", "tping", "[]", "--to", server.url),
        ("watch", "tping", "--from", server.address),
    ):
        done = tcprepl(*args, timeout_s=30)
        assert (done.returncode, done.stdout) == (2, ""), (args, done)
        assert "did you mean typing?" in done.stderr, (args, done.stderr)
        assert len(done.stderr.splitlines()[-1]) < 200
    assert not recorded.exists()
    tcprepl("record", str(recorded), "--since", "start", "--until-head", "--from", server.address)
    done = tcprepl("replay", str(recorded), "--stream", "tping", "--to", server.url)
    assert done.returncode == 2
    assert "did you mean typing?" in done.stderr


def test_replay_of_something_else(untouched: Server, tmp_path: Path) -> None:
    """A README that shows a row is no recording, whoever looks at it."""
    done = tcprepl("replay", str(ROOT / "README.md"), "--to", untouched.url)
    assert done.returncode == 2
    assert "is no recording" in done.stderr
    done = tcprepl("replay", str(CAPTURE), "--lines", "--dry-run", "--to", untouched.url)
    assert (done.returncode, done.stdout) == (0, "")
    assert "would be published" in done.stderr
    assert "typing master 0" in tcprepl("positions", "--from", untouched.address).stdout


def test_how_many_rows_were_taken(server: Server, tmp_path: Path) -> None:
    """The place in the input, as an editor counts, and what was taken before it."""
    text = "\ufeff" + f"{ROW}\n\n" * 2_000 + '["!r", 5]\n'
    done = tcprepl("publish", "typing", "--transaction-id", "t", "-q", "--to", server.url,
                   stdin=text)  # fmt: skip
    assert done.returncode == 1
    assert "line 4001: " in done.stderr
    assert "2000 rows before were taken" in done.stderr
    file = tmp_path / "rows.txt"
    file.write_text(
        '\ufeffRDATA device_lists m batch ["@a:b"]\n\nRDATA device_lists m 3 ["@b:b"]\n'
        "RDATA typing m 4 [5]\n",
        encoding="utf-8",
    )
    done = tcprepl("replay", str(file), "--lines", "--to", server.url)
    assert done.returncode == 1
    assert f"{file}:4: " in done.stderr
    assert "2 rows before were taken" in done.stderr
    assert done.stdout == "device_lists m 1\ndevice_lists m 1\n"


def test_a_wrong_port_is_recognised(untouched: Server) -> None:
    """HTTP is not the line protocol, and the other way round, and both say so."""
    done = tcprepl("positions", "--from", f"127.0.0.1:{untouched.http_port}")
    assert done.returncode == 1
    assert done.stderr.startswith("tcprepl: ")
    done = tcprepl("publish", "typing", ROW, "--to", f"http://{untouched.address}")
    assert done.returncode == 1
    assert "the line protocol, no HTTP server; it says 'SERVER example.com'" in done.stderr
    assert f"write --to tcprepl://{untouched.address} to publish there" in done.stderr


def test_tail_follows_and_counts(server: Server, tmp_path: Path) -> None:
    """Lines of the wire, batches marked, an end after so many rows."""
    server.publish("typing", ["!r:a", ["@a:a"]])
    server.publish("device_lists", ["@a:a"], ["@b:a"], batch=True)
    tail = start(tmp_path, "tail", "--since", "start", "--count", "5", "--from", server.address)
    with tail:
        tail.wait_for_lines(3)
        server.publish("typing", ["!r:a", []], ["!r:b", []], ["!never:b", []])
        assert tail.wait() == 0
    assert sorted(tail.lines[:3]) == [
        'RDATA device_lists master 1 ["@b:a"]',
        'RDATA device_lists master batch ["@a:a"]',
        'RDATA typing master 1 ["!r:a",["@a:a"]]',
    ]
    assert tail.lines[3:] == [
        'RDATA typing master 2 ["!r:a",[]]',
        'RDATA typing master 3 ["!r:b",[]]',
    ]


def test_tail_since_token_until_head_as_json(server: Server) -> None:
    """What is held after a token, as objects, and then the end."""
    server.publish("device_lists", ["@a:a"], ["@b:a"], ["@c:a"])
    done = tcprepl(
        "tail", "device_lists", "--since", "1", "--until-head", "--json", "--from", server.address
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"stream": "device_lists", "instance": "master", "token": 2, "row": ["@b:a"]},
        {"stream": "device_lists", "instance": "master", "token": 3, "row": ["@c:a"]},
    ]
    for args in (("tail", "--since", "1"), ("tail", "--json", "--commands")):
        assert tcprepl(*args).returncode == 2


def test_tail_until_head_of_nothing_ends_at_once(untouched: Server) -> None:
    """A server without rows is at its head."""
    done = tcprepl("tail", "--until-head", "--since", "start", "--from", untouched.address)
    assert (done.returncode, done.stdout) == (0, "")


def test_tail_for_seconds_with_commands(untouched: Server) -> None:
    """``--for`` ends in time; ``--commands`` shows positions."""
    done = tcprepl("tail", "typing", "--for", "0.5", "--commands", "--from", untouched.address)
    assert done.returncode == 0
    assert "POSITION typing master 0 0" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_cleanly(server: Server, tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C on a tail, and on the server: exit code 0, no traceback, peers are told."""
    with start(tmp_path, "tail", "--commands", "--from", server.address) as tail:
        tail.wait_for_output("POSITION typing")
        assert tail.stop(number) == 0
        assert "Traceback" not in tail.stderr
    with Lines(server.port) as plain:
        plain.send("REPLICATE\n")
        plain.expect("POSITION typing")
        assert server.process.stop(number) == 0
        assert list(plain.until_closed())[-1].startswith("ERROR ")
    assert "Traceback" not in server.process.stderr
    assert "serve.stopped" in server.process.stderr


def test_tail_reconnects_and_misses_nothing(server: Server, tmp_path: Path) -> None:
    """A restart of the server in the middle is nothing to a reader."""
    with start(tmp_path, "tail", "device_lists", "--count", "4", "--from", server.address,
               "--since", "start") as tail:  # fmt: skip
        server.publish("device_lists", ["@1:a"])
        tail.wait_for_lines(1)
        server.process.kill()
        server.start()
        server.publish("device_lists", ["@2:a"], ["@3:a"])
        tail.wait_for_lines(3)
        server.process.stop()
        server.start()
        server.publish("device_lists", ["@4:a"])
        assert tail.wait() == 0
    assert [line.split(" ", 4)[3:] for line in tail.lines] == [
        [str(n), f'["@{n}:a"]'] for n in (1, 2, 3, 4)
    ]


def test_access_tokens_are_not_shown(server: Server) -> None:
    """Some cache keys are access tokens; a screen is not the place for them."""
    server.publish("caches", ["get_user_by_access_token", ["syt_secret"], 1])
    done = tcprepl("tail", "--since", "start", "--until-head", "--from", server.address)
    assert done.stdout == ('RDATA caches master 1 ["get_user_by_access_token",["<redacted>"],1]\n')


def test_positions(server: Server) -> None:
    """Every stream with its token, in both forms."""
    server.publish("typing", ["!r:a", []], ["!r:b", []])
    done = tcprepl("positions", "--from", server.address)
    assert done.returncode == 0
    assert "typing master 2" in done.stdout.splitlines()
    assert len(done.stdout.splitlines()) >= 15
    done = tcprepl("positions", "--json", "--from", server.address)
    objects = [json.loads(line) for line in done.stdout.splitlines()]
    assert {"stream": "typing", "instance": "master", "token": 2} in objects


def test_real_capture_through_replay_record_and_replay(server: Server, tmp_path: Path) -> None:
    """What a real Synapse sent comes out of nc, tail, record and a second server row by row."""
    wanted = rows_of_capture()
    done = tcprepl("replay", str(CAPTURE), "--lines", "--to", server.url)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(wanted)

    with Lines(server.port) as plain:
        plain.send("REPLICATE * * 0\n")
        seen: list[str] = []
        while len(rows_of_lines(seen)) < len(wanted):
            seen.append(plain.readline())
    assert by_stream(rows_of_lines(seen)) == by_stream(wanted)

    # What is meant for screens and files has no access tokens; a few cache keys are some.
    wanted = [
        (stream, json.loads(without_access_tokens(stream, json.dumps(row).encode())))
        for stream, row in wanted
    ]
    tail = tcprepl("tail", "--since", "start", "--until-head", "--from", server.address)
    assert by_stream(rows_of_lines(tail.stdout.splitlines())) == by_stream(wanted)

    file = tmp_path / "session.rec"
    done = tcprepl(
        "record", str(file), "--since", "start", "--until-head", "--from", server.address
    )
    assert done.returncode == 0, done.stderr
    recorded = list(recording.read(file))
    assert by_stream(rows_of_lines([x.line.decode() for x in recorded])) == by_stream(wanted)
    assert any(x.line.startswith(b"POSITION ") for x in recorded)
    batches = [len(group.rows) for group in recording.rows(recording.read(CAPTURE, bare=True))]
    assert sorted(len(group.rows) for group in recording.rows(recorded)) == sorted(batches)

    with Server(tmp_path / "second") as second:
        for speed in ("max", "1000000"):
            again = tcprepl("replay", str(file), "--speed", speed, "--to", second.url)
            assert again.returncode == 0, again.stderr
        copy = tcprepl("tail", "--since", "start", "--until-head", "--from", second.address)
        twice = {stream: rows * 2 for stream, rows in by_stream(wanted).items()}
        assert by_stream(rows_of_lines(copy.stdout.splitlines())) == twice


def test_record_refuses_to_overwrite(untouched: Server, tmp_path: Path) -> None:
    """A recording that is there is not written over."""
    file = tmp_path / "x.rec"
    file.write_text("precious", encoding="utf-8")
    done = tcprepl("record", str(file), "--for", "1", "--from", untouched.address)
    assert done.returncode == 1
    assert "exists" in done.stderr
    assert file.read_text(encoding="utf-8") == "precious"


def test_second_server_on_the_same_data(untouched: Server) -> None:
    """One process per data directory, and the message says so."""
    done = tcprepl(
        "serve", "--data", str(untouched.where / "data"),
        "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0",
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert str(untouched.where / "data") in done.stderr


def test_port_in_use(untouched: Server, tmp_path: Path) -> None:
    """An address that is taken is named with its setting."""
    done = tcprepl("serve", "--data", str(tmp_path / "other"), "--listen", untouched.address)
    assert done.returncode == 1
    assert f"replication.listen: cannot listen on {untouched.address}" in done.stderr
    assert "Traceback" not in done.stderr


def test_config_file(tmp_path: Path) -> None:
    """``serve`` takes a file, and options are stronger."""
    config = tmp_path / "tcprepl.yaml"
    config.write_text(
        "worker_name: writer1\nstreams: {extra: [mine]}\nlog: {format: json}\n", encoding="utf-8"
    )
    with Server(tmp_path, "--config", str(config)) as server:
        assert "config.spelling" in server.process.stderr
        assert json.loads(server.process.stderr.splitlines()[0])["level"] == "warning"
        done = tcprepl("publish", "mine", '{"any": "thing"}', "--to", server.url)
        assert done.stdout == "mine writer1 1\n"
        done = tcprepl("tail", "mine", "--since", "start", "--until-head", "--from", server.address)
        assert rows_of_lines(done.stdout.splitlines()) == [("mine", {"any": "thing"})]
    config.write_text("listen: x\n", encoding="utf-8")
    done = tcprepl("serve", "--config", str(config))
    assert done.returncode == 2
    assert done.stderr == f"tcprepl: {config}: 1 fault\n  listen: unknown key\n"
