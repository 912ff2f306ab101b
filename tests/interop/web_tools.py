"""Programs that judge the HTTP faces from outside, each in an environment of its own."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.harness import WAIT_S, Running, Server, program, start, wait_until
from tests.interop.environments import cache_directory
from tests.ports import free_port

#: Longest that pip may take.
INSTALL_TIMEOUT_S = 600
#: How Chromium is started: without a screen, without looking for anything on the network.
CHROMIUM_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


class RelayOf(Server):
    """A ``tcprepl relay`` of a server, on ports of its own, which it keeps over restarts."""

    def __init__(self, upstream: Server, where: Path) -> None:
        super().__init__(where)
        self.upstream = upstream

    def start(self) -> Running:
        """Start it and wait until its upstream is there."""
        self.running = start(
            self.where,
            "relay",
            "--upstream",
            self.upstream.address,
            "--server-name",
            self.server_name,
            "--listen",
            self.address,
            "--http",
            f"127.0.0.1:{self.http_port}",
            "--data",
            str(self.where / "data"),
        )
        self.running.wait_for_output("relay.ready")
        wait_until(lambda: self.link()["up"], "the upstream is there")
        return self.running

    def link(self) -> Any:
        """Return what it says of its upstream."""
        return self.request("GET", "/_tcprepl/v1/status")["links"][0]

    def position(self, stream: str) -> int:
        """Return how far it has a stream."""
        streams = self.request("GET", "/_tcprepl/v1/status")["streams"]
        return max((one["position"] for one in streams if one["stream"] == stream), default=0)


@contextlib.contextmanager
def relay_with_a_gap(where: Path) -> Iterator[RelayOf]:
    """Run a relay that was away for longer than its upstream keeps rows.

    Of push_rules it has row 1, a gap up to where its upstream began by then, and two rows.
    """
    where.mkdir(parents=True, exist_ok=True)
    config = where / "upstream.yaml"
    config.write_text("streams: {retention_of: {push_rules: {rows: 2}}}\n", encoding="utf-8")
    with Server(where / "upstream", "--config", str(config)) as upstream:
        relay = RelayOf(upstream, where / "relay")
        with relay:
            upstream.publish("push_rules", ["@1:example.com"])
            wait_until(lambda: relay.position("push_rules") == 1, "the first row is relayed")
            assert relay.running is not None
            relay.running.stop()
            for number in range(2, 8):
                upstream.publish("push_rules", [f"@{number}:example.com"])

            def begins_after() -> int:
                streams = upstream.request("GET", "/_tcprepl/v1/status")["streams"]
                return max(one["floor"] for one in streams if one["stream"] == "push_rules")

            wait_until(lambda: begins_after() == 5, "two rows are kept")
            relay.start()
            wait_until(lambda: relay.position("push_rules") == 7, "the last row is relayed")
            yield relay


def python_with(*requirements: str) -> Path:
    """Return an interpreter that has *requirements*, making its environment if need be."""
    name = "-".join(requirement.partition("=")[0] for requirement in requirements)
    cache = cache_directory()
    cache.mkdir(exist_ok=True)
    home = cache / f"tool-{name}"
    stamp = home / "requirements.txt"
    wanted = "\n".join(requirements)
    with (cache / f"tool-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != wanted:
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
            subprocess.run(
                [str(home / "bin" / "python"), "-m", "pip", "install", "-q", *requirements],
                check=True,
                timeout=INSTALL_TIMEOUT_S,
            )
            stamp.write_text(wanted)
    return home / "bin" / "python"


class Browser:
    """A headless Chromium, driven by the WebDriver protocol.

    Args:
        where: For its files.
        width: Width of its window; below 500, which no window is, a telephone's screen.
        height: Height of its window.
    """

    def __init__(self, where: Path, width: int = 1280, height: int = 1100) -> None:
        self.port = free_port()
        self._driver = Running(
            [program("chromedriver"), f"--port={self.port}"], where, "chromedriver"
        )
        self._driver.wait_for_output("started successfully")
        flags = [
            *CHROMIUM_FLAGS,
            f"--window-size={width},{height}",
            f"--user-data-dir={where / 'profile'}",
        ]
        options: dict[str, Any] = {"args": flags, "binary": program("chromium")}
        if width < 500:
            metrics = {"width": width, "height": height, "pixelRatio": 2.0}
            options["mobileEmulation"] = {"deviceMetrics": metrics}
        wanted = {
            "capabilities": {
                "alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}
            }
        }
        self._session = "/session/" + self._call("POST", "/session", wanted)["sessionId"]

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._call("DELETE", self._session)
        self._driver.kill()

    def open(self, url: str) -> None:
        """Go to *url*."""
        self._call("POST", f"{self._session}/url", {"url": url})

    def show_as(self, media: str = "screen", scheme: str = "light") -> None:
        """Show pages from now on as on a medium, to somebody who likes a colour scheme."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._call(
            "POST",
            f"{self._session}/goog/cdp/execute",
            {
                "cmd": "Emulation.setEmulatedMedia",
                "params": {"media": media, "features": features},
            },
        )

    def run(self, script: str) -> Any:
        """Return what a piece of script returns."""
        return self._call("POST", f"{self._session}/execute/sync", {"script": script, "args": []})

    def text(self, selector: str) -> str:
        """Return what a person reads in an element, thin spaces left out."""
        found = self.run(f"return document.querySelector({json.dumps(selector)}).innerText")
        return str(found).replace("\u202f", "")

    def wait_for(self, script: str, what: str, timeout_s: float = WAIT_S) -> Any:
        """Return the first true answer of *script*."""
        return wait_until(lambda: self.run(script), what, timeout_s)

    def screenshot(self) -> bytes:
        """Return the window as PNG."""
        import base64

        return base64.b64decode(self._call("GET", f"{self._session}/screenshot"))

    def console(self) -> list[str]:
        """Return the errors that the page caused."""
        found = self._call("POST", f"{self._session}/se/log", {"type": "browser"})
        return [entry["message"] for entry in found if entry["level"] == "SEVERE"]

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        with contextlib.closing(connection):
            connection.request(method, path, None if body is None else json.dumps(body))
            answer = json.loads(connection.getresponse().read())["value"]
        if isinstance(answer, dict) and "error" in answer:
            raise AssertionError(f"{method} {path}: {answer['error']}: {answer['message']}")
        return answer


@contextlib.contextmanager
def browser(where: Path, width: int = 1280, height: int = 1100) -> Iterator[Browser]:
    """Run a browser for the time of a test."""
    with Browser(where, width, height) as running:
        yield running
