"""Who a client of the Matrix paths is: bearer tokens, and the user they speak for.

A configured token is that of an application service: it speaks for the user it is configured
for, or for whom the request names with ``user_id``. Where nothing at all is configured, the
processes of this machine are trusted to say for whom they speak. ``POST /login`` turns a
configured token into one for one device of one user, which holds both and a MAC under the
configured one: nothing is stored, so it is good for as long as the configured token is.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from typing import NamedTuple

from tcprepl.access import equal
from tcprepl.http.calls import ApiError, Call, excerpt, invalid
from tcprepl.http.security import bearer, fingerprint

_PREFIX = "tcprepl_user"
_USER, _DEVICE = "tcprepl user token\0", "tcprepl device token\0"
_MAX_USER_CHARS = 255
_MAX_DEVICE_CHARS = 255


class Speaker(NamedTuple):
    """For whom a request speaks.

    Attributes:
        user_id: The user.
        device_id: The device, if the token or the request names one.
        scope: What the transaction ids of the user count within: the device, else the token.
    """

    user_id: str
    device_id: str | None
    scope: tuple[str, str]


class ClientTokens:
    """Knows the configured tokens.

    Args:
        tokens: Each token, with the user it speaks for or None.
        server_name: The server whose users they may speak for.
        asks: Whether a token is needed; by default if there are any.
    """

    def __init__(
        self, tokens: Mapping[str, str | None], server_name: str, *, asks: bool | None = None
    ) -> None:
        self._tokens = dict(tokens)
        self._asks = bool(tokens) if asks is None else asks
        self._server_name = server_name

    def speaker_of(self, call: Call, path_user: str | None = None) -> Speaker:
        """Return for whom *call* speaks.

        Args:
            call: The request.
            path_user: The user in its path, for whom it has to speak.

        Raises:
            ApiError: 401 without a good token, 403 for somebody else's user or device, 400
                when nobody is named.
        """
        token = self.token_of(call) if self._asks else bearer(call) or ""
        bound, device = self._bound_to(token) if self._asks else (None, None)
        asked = call.param("user_id")
        user = bound or asked or path_user
        if user is None:
            raise ApiError(
                400,
                "M_MISSING_PARAM",
                "parameter 'user_id' is missing: this token speaks for no user of its own",
            )
        if asked not in (None, user):
            raise ApiError(
                403, "M_FORBIDDEN", f"this token speaks for {user}, not {excerpt(asked)}"
            )
        if path_user not in (None, user):
            raise ApiError(403, "M_FORBIDDEN", f"{user} may not speak for {excerpt(path_user)}")
        asked_device = call.param("device_id") or None
        if device is not None and asked_device not in (None, device):
            raise ApiError(
                403, "M_FORBIDDEN", f"this token is of {device}, not {excerpt(asked_device)}"
            )
        device = device or asked_device
        scope = ("token", fingerprint(token)) if device is None else ("device", device)
        return Speaker(self.check_user(user), device, scope)

    def check_user(self, user: str) -> str:
        """Return *user*, which is one of this server.

        Raises:
            ApiError: 403, it is not.
        """
        local, _, server = user.partition(":")
        if (
            not local.startswith("@")
            or server != self._server_name
            or len(user) > _MAX_USER_CHARS
            or any(character.isspace() for character in user)
        ):
            raise ApiError(
                403, "M_FORBIDDEN", f"{excerpt(user)} is not a user of {self._server_name}"
            )
        return user

    def token_of(self, call: Call) -> str:
        """Return the bearer token of *call*: the header's, or the old query parameter's.

        Raises:
            ApiError: 401, there is none.
        """
        token = bearer(call) or call.param("access_token")
        if not token:
            raise ApiError(401, "M_MISSING_TOKEN", "this needs Authorization: Bearer")
        return token

    def login(self, token: str, user: str | None, device: str | None) -> tuple[str, str, str]:
        """Return (user, device, a token that speaks for that device of that user alone).

        Args:
            token: A configured token.
            user: Who logs in, as an ID or its local part; None for the token's own user.
            device: On which device; None for a new one.

        Raises:
            ApiError: 403, the token is not known, or not for this user.
        """
        secret, bound = self._configured(token)
        if secret is None:
            raise ApiError(403, "M_FORBIDDEN", "the login token is not known here")
        if user is not None and not user.startswith("@"):
            user = f"@{user}:{self._server_name}"
        if bound is not None and user not in (None, bound):
            raise ApiError(403, "M_FORBIDDEN", f"this token speaks for {bound}")
        user = user or bound
        if user is None:
            raise ApiError(
                400, "M_MISSING_PARAM", "'identifier' is missing: expected the user who logs in"
            )
        self.check_user(user)
        device = device or secrets.token_hex(5).upper()
        if len(device) > _MAX_DEVICE_CHARS:
            raise invalid("device_id", device, f"at most {_MAX_DEVICE_CHARS} characters")
        bound_to = f"{_encode(user.encode())}.{_encode(device.encode())}"
        return user, device, f"{_PREFIX}.{bound_to}.{_mac(secret, _DEVICE + bound_to)}"

    def _bound_to(self, token: str) -> tuple[str | None, str | None]:
        """Return the user and the device that *token* speaks for, as far as it says."""
        secret, bound = self._configured(token)
        if secret is not None:
            return bound, None
        prefix, *parts = token.split(".")
        if prefix == _PREFIX and 2 <= len(parts) <= 3:
            mac = parts.pop()
            try:
                user, device = [*map(_decode, parts), None][:2]
            except (binascii.Error, ValueError):
                user, device = "", None
            # Tokens of before 0.2 name no device.
            signed = _USER + (user or "") if device is None else _DEVICE + ".".join(parts)
            good = False
            for configured in self._tokens:
                good |= equal(mac, _mac(configured, signed))
            if good and user:
                return user, device
        raise ApiError(401, "M_UNKNOWN_TOKEN", "this access token is not known here")

    def _configured(self, token: str) -> tuple[str | None, str | None]:
        found: tuple[str | None, str | None] = (None, None)
        for configured, user in self._tokens.items():
            if equal(token, configured):
                found = (configured, user)
        return found


def _encode(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).decode().rstrip("=")


def _decode(text: str) -> str:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()


def _mac(secret: str, signed: str) -> str:
    return _encode(hmac.digest(secret.encode(), signed.encode(), hashlib.sha256))
