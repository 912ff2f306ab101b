"""The status page in a real browser: headless Chromium, driven by the WebDriver protocol."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Lines, Server, wait_until
from tests.interop.web_tools import Browser, relay_with_a_gap

ROW = ["!r:example.com", "m.read", "@a:example.com", "$e", {"ts": 1, "pad": "x" * 200}]
#: Rows that fill every buffer between the server and a reader that does not read.
FLOOD_ROWS = 60_000
#: How wide the page is, and how wide the window.
WIDTHS = "return [document.documentElement.scrollWidth, window.innerWidth]"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the page."""
    with Server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go: ``TCPREPL_SHOTS`` when somebody wants to look at them."""
    named = os.environ.get("TCPREPL_SHOTS")
    where = Path(named) if named else tmp_path_factory.mktemp("shots")
    where.mkdir(parents=True, exist_ok=True)
    return where


def slow_reader(server: Server) -> socket.socket:
    """Return a subscriber that does not read."""
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    peer.connect(("127.0.0.1", server.port))
    peer.sendall(b"NAME slow-sender\nREPLICATE * * NOW\n")
    return peer


@contextlib.contextmanager
def fast_reader(server: Server) -> Iterator[None]:
    """A subscriber that reads all the time."""
    with Lines(server.port) as lines:
        lines.send("NAME fast-worker\nREPLICATE\n")

        def read() -> None:
            with contextlib.suppress(OSError):
                for _ in lines.until_closed():
                    pass

        reader = threading.Thread(target=read)
        reader.start()
        yield
        lines.socket.shutdown(socket.SHUT_RDWR)
        reader.join()


def flood(server: Server) -> None:
    """Publish more than the buffers hold."""
    for _ in range(FLOOD_ROWS // 10_000):
        server.publish("receipts", *([ROW] * 10_000))


def drain(peer: socket.socket, browser: Browser) -> None:
    """Read everything until the page says that nothing is behind."""
    peer.settimeout(0.2)

    def caught_up() -> bool:
        try:
            while peer.recv(1 << 20):
                pass
        except TimeoutError:
            pass
        return lag_rows(browser) == "0"

    wait_until(caught_up, "the lag is gone", 60.0)


def lag_rows(browser: Browser) -> str:
    """Return the rows that the slow peer is behind, as the page says."""
    return str(
        browser.run(
            "const row = [...document.querySelectorAll('#peers tbody tr')]"
            ".find(row => row.innerText.includes('slow-sender'));"
            "return row ? row.querySelector('[data-label=Rows]').innerText"
            ".replaceAll('\\u202f', '') : ''"
        )
    )


def test_numbers_move_and_a_slow_peers_lag_grows_and_shrinks(
    server: Server, shots: Path, tmp_path: Path
) -> None:
    """Without a reload; and the page causes no error and asks nobody else."""
    server.publish("typing", ["!r:example.com", ["@a:example.com"]])
    with (
        Browser(tmp_path) as browser,
        slow_reader(server) as peer,
        fast_reader(server),
    ):
        browser.open(server.url)
        assert browser.text("h1") == "example.com"
        browser.wait_for("return document.getElementById('live').className.includes('on')", "live")
        browser.wait_for(
            "return document.getElementById('peers').innerText.includes('slow-sender')", "the peer"
        )
        assert "typing" in browser.text("#streams")
        first_state = browser.text("#state")
        assert lag_rows(browser) == "0"
        flood(server)
        wait_until(lambda: int(lag_rows(browser) or 0) > 1_000, "the lag grows")
        browser.wait_for(
            "return document.querySelectorAll('#peers .pill.warn,#peers .pill.bad').length",
            "it is marked",
        )
        wait_until(lambda: str(FLOOD_ROWS) in browser.text("#streams"), "the position moves")
        browser.wait_for(
            "return document.querySelectorAll('#streams polyline').length > 1", "plots"
        )
        (shots / "status-behind.png").write_bytes(browser.screenshot())
        assert "slow-sender" in browser.text("#peers tbody tr:first-child")
        drain(peer, browser)
        wait_until(lambda: "all at the head" in browser.text("#summary"), "nobody is behind")
        (shots / "status-caught-up.png").write_bytes(browser.screenshot())
        assert browser.text("#state") != first_state
        assert browser.console() == []
        names = browser.run(
            "return performance.getEntriesByType('resource').map(entry => entry.name)"
        )
        assert {name.rpartition(":")[0] for name in names if name.startswith("http")} <= {
            "http://127.0.0.1"
        }
    wait_until(
        lambda: "peer_closed" in server.request("GET", "/_tcprepl/v1/status")["closed"],
        "it is counted",
    )


def test_a_relay_shows_its_upstream_and_what_was_lost(shots: Path, tmp_path: Path) -> None:
    """Away is seen at once, without a reload, and gone when it is back."""
    with relay_with_a_gap(tmp_path / "stage") as relay, Browser(tmp_path) as browser:
        browser.open(relay.url)
        browser.wait_for("return document.getElementById('live').className.includes('on')", "live")
        links = browser.text("#links")
        assert links.startswith("Links")
        assert relay.upstream.address in links
        assert "push_rules of master: rows in (1, 5] may be missing" in links
        assert browser.text("#links .pill.good") == "up"
        assert "away" not in browser.text("#state")
        rows = int(browser.text("#links [data-label=Rows]"))
        relay.upstream.publish("push_rules", ["@8:example.com"])
        wait_until(
            lambda: int(browser.text("#links [data-label=Rows]")) == rows + 1, "the row is counted"
        )
        (shots / "status-relay.png").write_bytes(browser.screenshot())
        relay.upstream.process.stop()
        browser.wait_for("return document.querySelectorAll('#links .pill.bad').length", "away")
        assert "upstream away" in browser.text("#state .pill.bad")
        assert relay.upstream.address in browser.text("#state")
        (shots / "status-relay-away.png").write_bytes(browser.screenshot())
        with Browser(tmp_path / "phone", 500, 900) as phone:
            phone.open(relay.url)
            assert "Reconnects" in phone.run(
                "return getComputedStyle(document.querySelector('[data-label=Reconnects]'), "
                "'::before').content"
            )
            assert phone.run(WIDTHS)[0] <= phone.run(WIDTHS)[1]
            (shots / "status-relay-phone.png").write_bytes(phone.screenshot())
        relay.upstream.start()
        browser.wait_for("return document.querySelectorAll('#links .pill.good').length", "back")
        wait_until(lambda: "away" not in browser.text("#state"), "the alarm is over")
        assert "last lost" in browser.text("#links [data-label=State]")
        assert browser.console() == []


def test_a_phone_shows_it_without_scrolling_sideways(
    server: Server, shots: Path, tmp_path: Path
) -> None:
    """Rows become cards with their labels."""
    server.publish("typing", ["!r:example.com", []])
    with Browser(tmp_path, 390, 844) as browser, slow_reader(server) as peer:
        browser.open(server.url)
        browser.wait_for(
            "return document.getElementById('peers').innerText.includes('slow-sender')", "the peer"
        )
        wide, room = browser.run(WIDTHS)
        assert wide <= room
        assert "State" in browser.run(
            "return getComputedStyle(document.querySelector('[data-label=State]'), '::before')"
            ".content"
        )
        (shots / "status-phone.png").write_bytes(browser.screenshot())
        peer.close()


#: Each text of the page whose colour is too near to that of what lies behind it (WCAG: 4.5).
UNREADABLE = """
const light = rgb => {
  const [r, g, b] = rgb.map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const numbers = colour => colour.match(/[0-9.]+/g).map(Number);
const behind = element => {
  for (; element; element = element.parentElement) {
    const [r, g, b, a = 1] = numbers(getComputedStyle(element).backgroundColor);
    if (a === 1) return [r, g, b];
  }
  return [255, 255, 255];
};
return [...document.querySelectorAll("body *")]
  .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) && e.offsetHeight)
  .map(e => {
    const [a, b] = [numbers(getComputedStyle(e).color).slice(0, 3), behind(e)].map(light);
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.tagName, e.className, e.innerText];
  })
  .filter(found => found[0] < 4.5);
"""


@pytest.mark.parametrize(
    ("media", "scheme"), [("screen", "light"), ("screen", "dark"), ("print", "dark")]
)
def test_it_can_be_read_by_day_by_night_and_on_paper(
    server: Server, shots: Path, tmp_path: Path, media: str, scheme: str
) -> None:
    """No text is too near to the colour behind it; paper is white."""
    server.publish("typing", ["!r:example.com", []])
    with Browser(tmp_path) as browser, slow_reader(server):
        browser.show_as(media, scheme)
        for path in ("", "/peers", "/streams/typing"):
            browser.open(server.url + path)
            browser.wait_for("return document.querySelector('table td')", "a table")
            assert browser.run(UNREADABLE) == []
            name = path.replace("/", "-") or "-status"
            (shots / f"{media}-{scheme}{name}.png").write_bytes(browser.screenshot())
            backdrop = browser.run("return getComputedStyle(document.body).backgroundColor")
            assert (backdrop == "rgb(255, 255, 255)") <= (media == "print" or scheme == "light")
            if media == "print":
                assert backdrop == "rgb(255, 255, 255)"


def test_plots_are_read_by_pointer_and_keys(server: Server, shots: Path, tmp_path: Path) -> None:
    """Of each span; what was read stays while the picture moves on."""
    server.publish("receipts", *([ROW] * 1_000))
    with Browser(tmp_path) as browser:
        browser.open(server.url)
        browser.wait_for("return document.getElementById('live').className.includes('on')", "live")
        browser.run(
            "const box = document.querySelector('#trend-2m svg').getBoundingClientRect();"
            "document.querySelector('#trend-2m figure').dispatchEvent(new PointerEvent("
            "'pointermove', {bubbles: true, clientX: box.right, clientY: box.top + 9}))"
        )
        said = "return document.querySelector('#trend-2m output').textContent"
        assert browser.run(said).endswith(", now")
        press = (
            "document.querySelector('#trend-1h figure').focus();"
            "document.activeElement.dispatchEvent(new KeyboardEvent("
            "'keydown', {key: '%s', bubbles: true}))"
        )
        browser.run("document.getElementById('span-1h').click()")
        assert browser.run("return document.querySelector('#trend-2m').offsetHeight") == 0
        browser.run(press % "ArrowLeft")
        hour = "return document.querySelector('#trend-1h output').textContent"
        assert browser.run(hour).endswith(", now")
        browser.run("const seen = document.querySelector('#trend-1h figure'); window.seen = seen")
        browser.wait_for("return !document.contains(window.seen)", "the picture moves on")
        assert browser.run(hour).endswith(", now")
        assert browser.run("return document.activeElement.tagName") == "FIGURE"
        (shots / "status-hour.png").write_bytes(browser.screenshot())
        assert browser.console() == []


def test_sixty_peers_are_found_and_turned_over(server: Server, shots: Path, tmp_path: Path) -> None:
    """At every width without scrolling sideways, and no page is endless."""
    with contextlib.ExitStack() as stack:
        for number in range(60):
            lines = stack.enter_context(Lines(server.port))
            lines.send(f"NAME worker-{number:02}\nREPLICATE typing * NOW\n")
            lines.expect("POSITION typing")
        for width, most in ((1280, 3_000), (768, 4_000), (500, 10_000)):
            browser = stack.enter_context(Browser(tmp_path / str(width), width, 1_000))
            browser.open(f"{server.url}/peers?sort=name")
            assert "page 1 of 2" in browser.text("nav")
            wide, room = browser.run(WIDTHS)
            assert wide <= room
            assert browser.run("return document.documentElement.scrollHeight") < most
            (shots / f"peers-{width}.png").write_bytes(browser.screenshot())
        browser.run("document.querySelector('nav a').click()")
        browser.wait_for("return document.body.innerText.includes('worker-59')", "the next page")
        browser.run("document.querySelector('td a').click()")
        browser.wait_for("return document.body.innerText.includes('It has everything')", "a peer")
        browser.run("document.querySelector('header a').click()")
        browser.wait_for("return document.querySelector('#trend-2m figure')", "the status page")
        assert browser.console() == []


def test_a_thousand_peers_are_no_slow_page(server: Server, tmp_path: Path) -> None:
    """Each page under 60 kB, there within a second, and live."""
    with contextlib.ExitStack() as stack:
        for number in range(1_000):
            peer = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            peer.sendall(b"NAME worker-%04d\nREPLICATE typing * NOW\n" % number)
        wait_until(
            lambda: len(server.request("GET", "/_tcprepl/v1/status")["peers"]) >= 1_000, "they came"
        )
        browser = stack.enter_context(Browser(tmp_path))
        for path in ("/", "/peers", "/streams/typing"):
            browser.open(server.url + path)
            loaded, size = browser.run(
                "const [entry] = performance.getEntriesByType('navigation');"
                "return [entry.domContentLoadedEventEnd, entry.decodedBodySize]"
            )
            assert size < 60_000
            assert loaded < 1_000
        browser.open(server.url)
        browser.wait_for("return document.getElementById('live').className.includes('on')", "live")
        assert "1000" in browser.text("#summary")


def test_long_names_and_rows_break_within_their_columns(
    server: Server, shots: Path, tmp_path: Path
) -> None:
    """No page is wider than its window, whatever peers and writers say."""
    long = "x" * 250
    server.publish("receipts", ["!r:example.com", "m.read", "@a:example.com", f"${long}", {}])
    with Lines(server.port) as lines, contextlib.ExitStack() as stack:
        lines.send(f"NAME {long}\nREPLICATE * * NOW\n")
        lines.expect("POSITION")
        lines.send(f"NAME {long}\n")
        ours = [
            p["conn_id"]
            for p in server.request("GET", "/_tcprepl/v1/status")["peers"]
            if p["name"] == long
        ]
        for width in (1280, 768, 390):
            browser = stack.enter_context(Browser(tmp_path / str(width), width, 900))
            for path in ("", "/peers", f"/peers/{ours[0]}", "/streams/receipts"):
                browser.open(server.url + path)
                wide, room = browser.run(WIDTHS)
                assert wide <= room, path
                name = path.strip("/").partition("/")[0] or "status"
                (shots / f"long-{name}-{width}.png").write_bytes(browser.screenshot())


#: Each cell of a table of peers in which an address is broken, or words of one line lie apart.
TORN = """
const lines = node => {
  const range = document.createRange();
  range.selectNodeContents(node);
  return [...range.getClientRects()];
};
return [...document.querySelectorAll("#peers td")].filter(cell => {
  const inside = [...cell.querySelectorAll(":scope > *")].filter(e => e.innerText);
  const boxes = inside.map(e => e.getBoundingClientRect());
  const apart = boxes.some((box, n) => n && box.top < boxes[n - 1].bottom
    && box.left - boxes[n - 1].right > 24);
  return apart || inside.some(e => e.className === "quiet" && lines(e).length > 1);
}).map(cell => cell.innerText);
"""


@pytest.mark.parametrize("width", [1280, 768, 390])
def test_what_belongs_together_stays_together(
    server: Server, shots: Path, tmp_path: Path, width: int
) -> None:
    """The address of a peer with its number, a state with the stream that it is of."""
    with (
        slow_reader(server),
        Lines(server.port) as lines,
        Browser(tmp_path, width, 900) as browser,
    ):
        lines.send("NAME federation_sender-01\nREPLICATE typing * NOW\n")
        lines.expect("POSITION typing")
        flood(server)
        browser.open(server.url)
        wait_until(lambda: int(lag_rows(browser) or 0) > 1_000, "it is behind")
        (shots / f"status-names-{width}.png").write_bytes(browser.screenshot())
        assert browser.run(TORN) == []


def test_what_is_typed_outlives_the_next_picture(server: Server, tmp_path: Path) -> None:
    """The list of peers goes on by itself, but not under somebody's typing."""
    with Browser(tmp_path) as browser:
        browser.open(f"{server.url}/peers")
        browser.run("const box = document.querySelector('input'); box.focus(); box.value = 'wor'")
        with Lines(server.port) as lines:
            lines.send("NAME worker-new\nREPLICATE\n")
            lines.expect("POSITION")
            browser.run("return again()")
            assert browser.run("return document.querySelector('input').value") == "wor"
            assert "worker-new" not in browser.text("main")
            browser.run("document.activeElement.blur()")
            browser.run("return again()")
            assert "worker-new" in browser.text("main")
            browser.run("document.querySelector('td a').focus()")
            browser.run("return again()")
            assert browser.run("return document.activeElement.tagName") == "A"
        assert browser.console() == []


def test_the_first_view_needs_no_script(server: Server) -> None:
    """What comes with the first answer says it all."""
    server.publish("typing", ["!first:example.com", []])
    html = server.request("GET", "/")
    assert "<code>typing</code>" in html
    assert '<noscript><meta http-equiv="refresh"' in html
