"""Who a client of the Matrix paths is: bearer tokens, and the user they speak for.

A configured token is that of an application service: it speaks for the user it is configured
for, or for whom the request names with ``user_id``. Where nothing at all is configured, the
processes of this machine are trusted to say for whom they speak. ``POST /login`` turns a
configured token into one for one user, which holds the user and a MAC under the configured
one: nothing is stored, so it is good for as long as the configured token is.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping

from tcprepl.http.routing import ApiError, Call, excerpt
from tcprepl.http.security import bearer, equal

_PREFIX = "tcprepl_user"
_MAX_USER_CHARS = 255


class ClientTokens:
    """Knows the configured tokens.

    Args:
        tokens: Each token, with the user it speaks for or None.
        server_name: The server whose users they may speak for.
    """

    def __init__(self, tokens: Mapping[str, str | None], server_name: str) -> None:
        self._tokens = dict(tokens)
        self._server_name = server_name

    def user_of(self, call: Call, path_user: str | None = None) -> str:
        """Return for whom *call* speaks.

        Args:
            call: The request.
            path_user: The user in its path, for whom it has to speak.

        Raises:
            ApiError: 401 without a good token, 403 for somebody else's user, 400 when nobody
                is named.
        """
        bound = self._bound_user(self.token_of(call)) if self._tokens else None
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
        return self.check_user(user)

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

    def login(self, token: str, user: str | None) -> tuple[str, str]:
        """Return (user, a token that speaks for that user alone).

        Args:
            token: A configured token.
            user: Who logs in, as an ID or its local part; None for the token's own user.

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
        encoded = _encode(user.encode())
        return user, f"{_PREFIX}.{encoded}.{_mac(secret, user)}"

    def _bound_user(self, token: str) -> str | None:
        secret, bound = self._configured(token)
        if secret is not None:
            return bound
        prefix, _, rest = token.partition(".")
        encoded, _, mac = rest.partition(".")
        if prefix == _PREFIX and mac:
            try:
                user = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
            except (binascii.Error, ValueError):
                user = ""
            good = False
            for configured in self._tokens:
                good |= equal(mac, _mac(configured, user))
            if good and user:
                return user
        raise ApiError(401, "M_UNKNOWN_TOKEN", "this access token is not known here")

    def _configured(self, token: str) -> tuple[str | None, str | None]:
        found: tuple[str | None, str | None] = (None, None)
        for configured, user in self._tokens.items():
            if equal(token, configured):
                found = (configured, user)
        return found


def _encode(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).decode().rstrip("=")


def _mac(secret: str, user: str) -> str:
    return _encode(
        hmac.digest(secret.encode(), b"tcprepl user token\0" + user.encode(), hashlib.sha256)
    )
