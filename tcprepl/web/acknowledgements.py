"""``POST /_tcprepl/v1/federation_ack``: what a federation sender says that polls over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from msgspec import Meta, Struct

from tcprepl import limits
from tcprepl.http.calls import ApiError, Call, Response, json_response
from tcprepl.http.routing import About, Route
from tcprepl.http.security import Gate
from tcprepl.ids import InstanceName, Token
from tcprepl.web.incarnations import said_incarnation, void_above
from tcprepl.web.ingest import check_instance
from tcprepl.web.services import WebServices

FEDERATION = "federation"


class Acknowledgement(Struct, forbid_unknown_fields=True):
    """Up to where a federation sender holds everything."""

    instance: InstanceName
    token: Annotated[Token, Meta(ge=0, le=limits.MAX_TOKEN)]


class Acknowledgements:
    """Takes acknowledgements of federation senders (protocol.md section 14.2).

    Args:
        services: The ports; uses *acknowledge*, *log* and *instance*.
    """

    def __init__(self, services: WebServices) -> None:
        self._acknowledge = services.acknowledge
        self._log = services.log
        self._own = services.instance

    def routes(self, gate: Gate) -> Iterator[Route]:
        """Return the path."""
        about = About(
            "Say that a federation sender holds everything up to a token",
            body=Acknowledgement,
            says="It counts.",
            refuses={404: None, 409: None},
        )
        path = "/_tcprepl/v1/federation_ack"
        yield Route("POST", path, self.post, gate.operating, about, while_shut=True)

    def post(self, call: Call) -> Response:
        """Note that a sender holds everything up to a token; 409 says why that has no effect."""
        if self._acknowledge is None:
            raise ApiError(404, "M_NOT_FOUND", "this process takes no acknowledgements")
        asked = call.json(Acknowledgement)
        check_instance(asked.instance)
        pair = (FEDERATION, self._own)
        if void_above(self._log, pair, asked.token, said_incarnation(call)) is not None:
            raise ApiError(
                409,
                "TCPREPL_NOT_ACKNOWLEDGED",
                f"the rows up to {asked.token} are not all of this log, which was restored from a "
                f"copy, or is another one: read on first",
            )
        reason = self._acknowledge(asked.instance, asked.token)
        if reason is not None:
            raise ApiError(409, "TCPREPL_NOT_ACKNOWLEDGED", reason)
        return json_response({})
