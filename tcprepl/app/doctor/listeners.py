"""Where others connect to us: ports, certificates, and files that hold secrets."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tcprepl.addresses import HAPROXY, Address, EndpointString
from tcprepl.app.answering import told
from tcprepl.app.doctor.findings import WAIT_S, Finding, Verdict, user
from tcprepl.app.tls import BEGIN
from tcprepl.errors import LogUnavailable
from tcprepl.protocol.display import counted
from tcprepl.replication.redis.resp import encode
from tcprepl.settings import BusSettings, Config, HttpSettings, ReplicationSettings, TlsSettings
from tcprepl.storage.lock import holder_of

#: A certificate that ends sooner than this is worth a word.
CERTIFICATE_WARN_S = 14 * 86_400


def secrets(config: Config) -> Iterator[Finding]:
    """Whether files that hold secrets can be read by us, and not by others."""
    files = [tls.private_key for tls in _all_tls(config)]
    named = (
        config.federation.signing_key,
        config.bus.password_file,
        *config.bus.users.values(),
        config.http.token_file,
        config.http.replication_secret_file,
        *(settings.token_file for settings in config.replication.tokens),
        *(settings.token_file for settings in config.http.client_tokens),
    )
    for path in dict.fromkeys([*files, *(path for path in named if path is not None)]):
        if not os.access(path, os.R_OK):
            text, todo = f"{path} is not there", f"put it there, for {user()} alone to read"
            if path.exists():
                text, todo = f"{path} cannot be read (by {user()})", f"chown {user()} {path}"
            yield Finding(Verdict.FAULT, "secrets", text, todo)
        elif path.stat().st_mode & 0o007:
            yield Finding(
                Verdict.WARNING,
                "secrets",
                f"{path} can be read by everybody",
                f"chmod o-rwx {path}",
            )
        else:
            yield Finding(Verdict.GOOD, "secrets", f"{path} is for us alone")


def certificates(config: Config) -> Iterator[Finding]:
    """How long the certificates of our listeners are good for."""
    settings = _all_tls(config)
    for tls in dict.fromkeys(settings):
        yield _certificate(tls.certificate, tls)
    files = [endpoint.files() for endpoint in _endpoint_strings(config)]
    chains = [named["extraCertChain"] for named in files if "extraCertChain" in named]
    others = [named["dhParameters"] for named in files if "dhParameters" in named]
    for path in dict.fromkeys([*(tls.client_ca for tls in settings), *chains, *others]):
        if path is None:
            continue
        if not os.access(path, os.R_OK):
            yield _no_certificate(path, "cannot be read" if path.exists() else "is not there")
        elif path in chains and BEGIN not in path.read_bytes():
            yield _no_certificate(path, "holds no certificate")


def _endpoint_strings(config: Config) -> Iterator[EndpointString]:
    for section in (config.replication, config.http, config.bus):
        for address in section.listen:
            if address.endpoint is not None:
                yield address.endpoint


def _all_tls(config: Config) -> list[TlsSettings]:
    """Return what the listeners have for TLS, of their sections and of endpoint strings."""
    found = []
    for section in (config.replication, config.http, config.bus):
        placed = (_placed(address, section.tls) for address in section.listen)
        found += [section.tls, *(place.tls for place in placed if place is not None)]
    return list(dict.fromkeys(tls for tls in found if tls is not None))


class _Place(NamedTuple):
    """Where is listened, and with what TLS."""

    host: str
    port: int | None
    tls: TlsSettings | None


def _placed(address: Address, tls: TlsSettings | None) -> _Place | None:
    """Return what an address says; None of an endpoint string without a port of its own."""
    if address.host is not None:
        return _Place(address.host, address.port, tls)
    endpoint = address.endpoint
    if endpoint is None or endpoint.kind not in {"ssl", "tcp", "tcp6"}:
        return None
    given, files = endpoint.of_listener(), endpoint.files()
    port = given.get("port", "")
    # who is behind a proxy answers nobody who does not begin as the proxy does
    known = port.isdecimal() and not address.text.startswith(HAPROXY)
    own = None
    if files:
        key = files["privateKey"]
        own = TlsSettings(private_key=key, certificate=files.get("certKey", key))
    any_host = "::" if endpoint.kind == "tcp6" else "0.0.0.0"  # noqa: S104  # as Twisted does
    return _Place(given.get("interface") or any_host, int(port) if known else None, own)


def _no_certificate(path: Path, why: str) -> Finding:
    todo = "expected a PEM file" if path.exists() else "put it there"
    return Finding(Verdict.FAULT, "certificates", f"{path}: {why}", todo)


def _certificate(path: Path, tls: TlsSettings) -> Finding:
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())[0]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "holds no certificate"
        return _no_certificate(path, reason)
    try:
        if os.access(tls.private_key, os.R_OK):  # else it is one of the secrets that are missing
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path, tls.private_key)
    except (OSError, ssl.SSLError):
        return Finding(
            Verdict.FAULT,
            "certificates",
            f"{path} does not go with {tls.private_key}",
            "name the key that it was made for",
        )
    left_s = found.not_valid_after_utc.timestamp() - time.time()
    ends = found.not_valid_after_utc.strftime("%Y-%m-%d")
    if left_s < 0:
        return Finding(Verdict.FAULT, "certificates", f"{path} ended on {ends}", "renew it")
    if left_s < CERTIFICATE_WARN_S:
        text = f"{path} ends on {ends}, in {counted(round(left_s / 86_400), 'day')}"
        return Finding(Verdict.WARNING, "certificates", text, "renew it; it is taken up by itself")
    return Finding(Verdict.GOOD, "certificates", f"{path} is good until {ends}")


def ports(config: Config) -> Iterator[Finding]:
    """Whether our addresses are free, or who answers there."""
    sections: list[tuple[str, ReplicationSettings | HttpSettings | BusSettings]] = [
        ("replication", config.replication),
        ("http", config.http),
    ]
    if "bus" in config.model_fields_set:  # another process's, and Redis's port if nothing is said
        sections.append(("bus", config.bus))
    for name, section in sections:
        for address in section.listen:
            place = _placed(address, section.tls)
            if place is not None and place.port is not None:
                unused = "" if name == "bus" else _unused(config)
                yield _port(name, address, place.host, place.port, place.tls, unused)


def _unused(config: Config) -> str:
    """Return the directory of our data, if it is known that no process has it; else ""."""
    directory = config.data_directory
    if config.data is not None or directory is None:
        return ""
    try:
        return "" if told(directory) or holder_of(directory) else str(directory)
    except LogUnavailable:
        return ""  # whoever has it is not to be seen


def _port(
    name: str, address: Address, host: str, port: int, tls: TlsSettings | None, unused: str
) -> Finding:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError:
            return Finding(
                Verdict.FAULT,
                "ports",
                f"{name}.listen {address}: {user()} may not listen there",
                "a port above 1023, or AmbientCapabilities=CAP_NET_BIND_SERVICE in the unit",
            )
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return Finding(
                    Verdict.FAULT,
                    "ports",
                    f"{name}.listen {address}: {error.strerror}",
                    "name an address of this machine",
                )
        else:
            return Finding(Verdict.GOOD, "ports", f"{name}.listen {address} is free")
    who = _ours(host, port, name, tls)
    if who and not unused:
        return Finding(Verdict.GOOD, "ports", f"{name}.listen {address}: {who} answers there")
    if who:
        return Finding(
            Verdict.FAULT,
            "ports",
            f"{name}.listen {address}: another {who} answers there, as no process has {unused}",
            f"stop it (ss -ltnp 'sport = :{port}' shows which it is), or name another port",
        )
    return Finding(
        Verdict.FAULT,
        "ports",
        f"{name}.listen {address} is taken, and not by tcprepl",
        f"ss -ltnp 'sport = :{port}' shows by whom",
    )


def _ours(host: str, port: int, name: str, tls: TlsSettings | None) -> str:
    """Return what listens there, if it shows our certificate or speaks as we do; else ""."""
    try:
        with _connected(host, port, tls) as peer:
            if tls is not None and isinstance(peer, ssl.SSLSocket):
                ours = x509.load_pem_x509_certificates(tls.certificate.read_bytes())[0]
                if peer.getpeercert(binary_form=True) == ours.public_bytes(Encoding.DER):
                    return "tcprepl"
            if name == "http":
                peer.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            elif name == "bus":
                peer.sendall(encode(b"INFO", b"server"))
            said = peer.recv(4096)
    except (OSError, ValueError):
        return ""
    if name != "bus":
        is_ours = said.startswith((b"SERVER ", b"ERROR ")) or b'"live"' in said
    elif said.startswith(b"-NOAUTH "):  # nothing more without the password, which is not told
        return "what wants a password, a tcprepl bus or a Redis,"
    else:
        is_ours = b"tcprepl_version:" in said
    return "tcprepl" if is_ours else ""


def _connected(host: str, port: int, tls: TlsSettings | None) -> socket.socket:
    peer = socket.create_connection((host, port), WAIT_S)
    if tls is None:
        return peer
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # who it is, is what is asked here; no secret is told
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        return context.wrap_socket(peer)
    except OSError:
        peer.close()
        raise
