"""twisted.web by itself: it takes a request with its body, and always answers the same.

``python web_peer.py PORT``. What a server made with it costs at least; there is no access log.
"""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet import reactor as global_reactor
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

ANSWER = b'{"stream":"typing","instance":"master","first":1,"last":1}'
reactor: Any = global_reactor


class Constant(Resource):
    """Answers a POST."""

    def render_POST(self, request: Request) -> bytes:
        """Read the body; answer."""
        assert request.content is not None
        request.content.read()
        request.setHeader(b"Content-Type", b"application/json")
        return ANSWER


def main(port: int) -> None:
    """Serve for ever."""
    resource = Constant()
    resource.isLeaf = True
    site = Site(resource)
    site.log = lambda request: None  # type: ignore[method-assign,assignment]
    reactor.listenTCP(port, site, 1024, "127.0.0.1")
    print("READY", flush=True)
    reactor.run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
