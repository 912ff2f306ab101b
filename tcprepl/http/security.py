"""Who may ask what (protocol.md section 16).

Secrets are compared in constant time. Without one the server is for its own machine only:
the configuration refuses any other bind, and a browser that was lured into asking a loopback
address (DNS rebinding, a form on a foreign page) is turned away here.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Collection
from ipaddress import ip_address
from urllib.parse import urlsplit

from tcprepl.errors import ConfigError
from tcprepl.http.calls import ApiError, Call, excerpt

#: Hosts of requests that are remembered; a program or browser names one.
_MAX_JUDGED = 64


def equal(given: str, secret: str) -> bool:
    """Return whether the two are equal, in time that tells nothing about *secret*."""
    return hmac.compare_digest(
        hashlib.sha256(given.encode("utf-8", "surrogatepass")).digest(),
        hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest(),
    )


def equal_to_one(given: str, secrets: Collection[str]) -> bool:
    """Return whether *given* is one of *secrets*, in time that tells nothing about them."""
    found = False
    for secret in secrets:
        found |= equal(given, secret)
    return found


def fingerprint(secret: str) -> str:
    """Return who shows *secret*, in a form that may be stored and does not tell it."""
    return hmac.digest(secret.encode("utf-8", "surrogatepass"), b"caller", "sha256").hex()[:32]


def is_loopback(host: str) -> bool:
    """Return whether *host*, an address or a name, is this machine and no other."""
    name = host.strip("[]").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name.partition("%")[0]).is_loopback
    except ValueError:
        return False


def bearer(call: Call) -> str | None:
    """Return the token of ``Authorization: Bearer``; None when there is no such header.

    Raises:
        ApiError: there are several headers, or one that is not UTF-8.
    """
    scheme, _, token = authorization(call).partition(" ")
    return token if scheme == "Bearer" else None


def authorization(call: Call) -> str:
    """Return the Authorization header, empty when there is none.

    Raises:
        ApiError: 401, there are several, or it is not UTF-8.
    """
    try:
        return call.header("Authorization") or ""
    except ApiError as error:
        raise unauthorized(error.message) from None


def unauthorized(message: str, *, browser: bool = False) -> ApiError:
    """Return the refusal of a request that did not show the secret."""
    challenge = 'Basic realm="tcprepl", charset="UTF-8"' if browser else 'Bearer realm="tcprepl"'
    return ApiError(401, "M_UNKNOWN_TOKEN", message, headers={"WWW-Authenticate": challenge})


class Gate:
    """Guards the replication side of the server with shared secrets.

    Args:
        secrets: A request has to show one of them; with none, every process of this machine
            is let in.
        hosts: Names under which a browser may reach a server without a secret, beside
            loopback names and addresses.
        client_tokens: The tokens of the Matrix client paths, which check them themselves.
    """

    def __init__(
        self,
        secrets: Collection[str],
        hosts: Collection[str] = (),
        *,
        client_tokens: Collection[str] = (),
    ) -> None:
        self.admit(secrets, hosts, client_tokens=client_tokens)

    def admit(
        self,
        secrets: Collection[str],
        hosts: Collection[str] = (),
        *,
        client_tokens: Collection[str] = (),
    ) -> None:
        """Judge requests by these from now on; the arguments are as for the class."""
        if "" in (*secrets, *client_tokens):
            raise ConfigError("an HTTP secret is empty: expected at least one character")
        self._secrets = tuple(secrets)
        self._trusting_clients = not secrets and not client_tokens
        self._hosts = frozenset(host.lower() for host in hosts)
        self._judged: dict[str, bool] = {}

    def open(self, call: Call) -> None:
        """Let everybody in."""

    def machine(self, call: Call) -> None:
        """Let in who shows ``Authorization: Bearer`` with the secret."""
        if not self._secrets:
            self._only_local_pages(call)
            return
        token = bearer(call)
        if token is None:
            raise unauthorized("this needs Authorization: Bearer with the replication secret")
        if not equal_to_one(token, self._secrets):
            raise unauthorized("the replication secret is wrong")
        call.caller = fingerprint(token)

    def person(self, call: Call) -> None:
        """Let in who shows the secret as Bearer, or as the password a browser asks for."""
        if not self._secrets:
            self._only_local_pages(call)
            return
        token = bearer(call)
        if token is None:
            token = _basic_password(call)
        if token is None or not equal_to_one(token, self._secrets):
            raise unauthorized(
                "this needs the replication secret: as Bearer, or as the password",
                browser=True,
            )

    def client(self, call: Call) -> None:
        """Let in who will show a token, or a process of this machine that needs none."""
        if self._trusting_clients:
            self._only_local_pages(call, reading=False)

    def _only_local_pages(self, call: Call, *, reading: bool = True) -> None:
        """Refuse a browser that a foreign page sent here."""
        host = call.header("Host") or ""
        local = self._judged.get(host)
        if local is None:
            local = self._local(host)
            if len(self._judged) < _MAX_JUDGED:
                self._judged[host] = local
        if not local:
            raise ApiError(
                403,
                "M_FORBIDDEN",
                f"Host is {excerpt(host)}: without a secret this server answers to addresses, "
                "localhost and the hosts named in the configuration only",
            )
        origin = call.header("Origin")
        only_reads = reading and call.method in ("GET", "HEAD")
        if origin is not None and not only_reads and _netloc(origin) != host.lower():
            raise ApiError(
                403,
                "M_FORBIDDEN",
                f"Origin is {excerpt(origin)}: without a secret, pages of other sites may "
                "not write here",
            )

    def _local(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if is_loopback(name) or name in self._hosts or not name:
            return True
        try:
            ip_address(name)
        except ValueError:
            return False
        return True


def _netloc(url: str) -> str | None:
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return None


def _basic_password(call: Call) -> str | None:
    scheme, _, encoded = authorization(call).partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(encoded, validate=True).decode("utf-8").partition(":")[2]
    except ValueError:  # not base64, not ASCII, not UTF-8
        return None
