"""``POST /_tcprepl/v1/federation_ack``: what a federation sender says that polls over HTTP."""

from __future__ import annotations

import msgspec

from tcprepl.http.routing import ApiError, Call, Response, json_response
from tcprepl.web.ingest import check_name
from tcprepl.web.services import WebServices


class _Acknowledgement(msgspec.Struct, forbid_unknown_fields=True):
    instance: str
    token: int


class Acknowledgements:
    """Takes acknowledgements of federation senders (protocol.md section 14.2).

    Args:
        services: The ports; uses *acknowledge*.
    """

    def __init__(self, services: WebServices) -> None:
        self._acknowledge = services.acknowledge

    def post(self, call: Call) -> Response:
        """Note that a sender holds everything up to a token; 409 says why that has no effect."""
        if self._acknowledge is None:
            raise ApiError(404, "M_NOT_FOUND", "this process takes no acknowledgements")
        asked = call.json(_Acknowledgement)
        check_name("instance", asked.instance)
        reason = self._acknowledge(asked.instance, asked.token)
        if reason is not None:
            raise ApiError(409, "TCPREPL_NOT_ACKNOWLEDGED", reason)
        return json_response({})
