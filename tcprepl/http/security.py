"""Who may ask what (protocol.md section 16).

Secrets are compared in constant time. Without one the server is for its own machine only:
the configuration refuses any other bind, and a browser that was lured into asking a loopback
address (DNS rebinding, a form on a foreign page) is turned away here.
"""

from __future__ import annotations

import base64
import hmac
import math
from collections.abc import Callable, Collection
from ipaddress import ip_address
from urllib.parse import urlsplit

from tcprepl.access import EVERYTHING, Grant, Guesses, Tokens, digest
from tcprepl.errors import ConfigError, TokenRefused
from tcprepl.http.calls import ApiError, Call, excerpt
from tcprepl.ids import StreamName
from tcprepl.metrics import REFUSED_ACCESS
from tcprepl.protocol.specs import Right

#: Hosts of requests that are remembered; a program or browser names one.
_MAX_JUDGED = 64


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
    """Guards the server with tokens: which right a route needs is which method guards it.

    Args:
        secrets: Who shows one of these may do everything.
        hosts: Names under which a browser may reach a server without secrets, beside
            loopback names and addresses.
        client_tokens: The tokens of the Matrix client paths, which check them themselves.
        grants: Further tokens, each with what it grants. With neither these nor *secrets*, every
            process of this machine may do everything.
        guesses: Where wrong tokens are counted.
        now: Returns monotonic seconds.
    """

    def __init__(
        self,
        secrets: Collection[str],
        hosts: Collection[str] = (),
        *,
        client_tokens: Collection[str] = (),
        grants: Collection[tuple[str, Grant]] = (),
        guesses: Guesses | None = None,
        now: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._guesses = Guesses() if guesses is None else guesses
        self._now = now
        self.admit(secrets, hosts, client_tokens=client_tokens, grants=grants)

    def admit(
        self,
        secrets: Collection[str],
        hosts: Collection[str] = (),
        *,
        client_tokens: Collection[str] = (),
        grants: Collection[tuple[str, Grant]] = (),
    ) -> None:
        """Judge requests by these from now on; the arguments are as for the class."""
        if "" in (*secrets, *client_tokens):
            raise ConfigError("an HTTP secret is empty: expected at least one character")
        everything = ((secret, EVERYTHING) for secret in secrets)
        self._tokens = Tokens((*grants, *everything), self._guesses)
        kinds = (
            ("the replication secret", secrets),
            ("a token of replication.tokens", grants),
        )
        self._wanted = " or ".join(words for words, configured in kinds if configured)
        self._wrong = (
            f"the token is not known here; expected {self._wanted}"
            if grants
            else f"{self._wanted} is wrong"
        )
        self._trusting_clients = not self._tokens and not client_tokens
        self._hosts = frozenset(host.lower() for host in hosts)
        self._judged: dict[str, bool] = {}

    def open(self, call: Call) -> None:
        """Let everybody in."""

    def reading(self, call: Call) -> None:
        """Let in who may read the stream of the path; without one there, some stream."""
        self._identify(call)
        stream = call.path_args.get("stream")
        allowed = call.grant.sees if stream is None else stream in call.grant.sees
        self._check(call, Right.READ, f"read {stream or 'some stream'}", bool(allowed))

    def check_reading(self, call: Call, stream: StreamName) -> None:
        """Refuse who was let in and may not read *stream*."""
        self._check(call, Right.READ, f"read {stream}", stream in call.grant.sees)

    def writing(self, call: Call) -> None:
        """Let in who may write the stream of the path."""
        self._identify(call)
        stream = call.path_args["stream"]
        self._check(call, Right.WRITE, f"write {stream}", stream in call.grant.write)

    def operating(self, call: Call) -> None:
        """Let in who may steer the server."""
        self._identify(call)
        self._check(call, Right.OPERATE, "operate", call.grant.operate)

    def looking(self, call: Call) -> None:
        """Let in who may look at it, also with the token as the password a browser asks for."""
        self._identify(call, browser=True)
        self._check(call, Right.LOOK, "operate or inspect", call.grant.looks)

    def still_holds(self, call: Call) -> None:
        """Refuse a request that waits, if what it was let in with has changed meanwhile."""
        grant = EVERYTHING if not self._tokens else None
        if call.token is not None:
            grant = self._tokens.grant(call.token)
        if grant != call.grant:
            raise unauthorized("what this token allows has changed; ask again")

    def _identify(self, call: Call, *, browser: bool = False) -> None:
        """Note what the caller may do.

        Raises:
            ApiError: 401 without a good token, 429 for who has to wait until one is looked at.
        """
        if not self._tokens:
            self._only_local_pages(call)
            call.grant = EVERYTHING
            return
        token = bearer(call)
        needs = f"this needs Authorization: Bearer with {self._wanted}"
        if browser:
            token = _basic_password(call) if token is None else token
            needs = f"this needs {self._wanted}: as Bearer, or as the password"
        if token is None:
            REFUSED_ACCESS.labels("http", "no_token").inc()
            raise unauthorized(needs, browser=browser)
        try:
            call.grant = self._tokens.admit(token, _host(call), self._now())
        except TokenRefused as error:
            REFUSED_ACCESS.labels("http", "waiting" if error.wait_s else "unknown_token").inc()
            if error.wait_s:
                raise wait(error) from None
            raise unauthorized(needs if browser else self._wrong, browser=browser) from None
        call.token = digest(token)
        call.caller = fingerprint(token)

    def _check(self, call: Call, right: Right, what: str, allowed: bool) -> None:
        if not allowed:
            REFUSED_ACCESS.labels("http", right.value).inc()
            raise ApiError(
                403,
                "M_FORBIDDEN",
                f"this needs a token that may {what}; {call.grant.name} {call.grant} here; "
                "its entry in replication.tokens says so",
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


def wait(error: TokenRefused) -> ApiError:
    """Return the refusal of who has guessed too often."""
    seconds = max(1, math.ceil(error.wait_s))
    return ApiError(
        429,
        "M_LIMIT_EXCEEDED",
        str(error),
        headers={"Retry-After": str(seconds)},
        extra={"retry_after_ms": seconds * 1000},
    )


def _host(call: Call) -> str | None:
    """Return where a request is from; None for this machine: a proxy hides whom it speaks for."""
    host = getattr(call.request.client, "host", None)
    return None if host is None or is_loopback(host) else host


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
