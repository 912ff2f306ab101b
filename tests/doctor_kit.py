"""What the tests of the doctor share: configurations, and who answers."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from tcprepl.app.doctor.findings import Finding, Verdict
from tcprepl.config import build
from tcprepl.replication.redis.resp import RespReader, encode
from tcprepl.settings import Config

GOOD, WARNING, FAULT = Verdict


def config(**raw: Any) -> Config:
    """Return a configuration."""
    return build(raw, "test").config


def one(findings: Iterator[Finding]) -> Finding:
    """Return the only finding; whatever is not good has a remedy."""
    (found,) = findings
    assert bool(found.remedy) is (found.verdict is not GOOD)
    return found


@contextmanager
def answering(text: bytes, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Say *text* to whoever connects, after hearing something if it is an answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    peer, _ = listener.accept()
                except OSError:
                    return
                with ExitStack() as stack, suppress(OSError):
                    stack.enter_context(peer).settimeout(0.2)
                    if tls is not None:
                        peer = stack.enter_context(tls.wrap_socket(peer, server_side=True))
                    with suppress(TimeoutError):
                        peer.recv(4096)
                    peer.sendall(text)
                    peer.shutdown(socket.SHUT_RDWR)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5.0)


@contextmanager
def redis_saying(info: str, settings: dict[str, str] | str = "", **refused: str) -> Iterator[str]:
    """Be a Redis of this INFO and these settings; *settings* in words is a refusal."""

    def answer(words: list[bytes]) -> bytes:
        asked = words[0].decode()
        if asked in refused:
            return f"-{refused[asked]}\r\n".encode()
        if asked == "INFO":
            return b"$%d\r\n%b\r\n" % (len(info), info.encode())
        if asked == "AUTH":
            return b"+OK\r\n"
        if isinstance(settings, str):
            return f"-{settings}\r\n".encode()
        name = words[2].decode()
        return encode(words[2], settings[name].encode()) if name in settings else b"*0\r\n"

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            peer, _ = listener.accept()
            reader = RespReader()
            with peer:
                while read := peer.recv(4096):
                    for words in reader.feed(read)[1]:
                        peer.sendall(answer(words))  # type: ignore[arg-type]

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"redis://:secret@127.0.0.1:{listener.getsockname()[1]}"
    thread.join(5.0)
