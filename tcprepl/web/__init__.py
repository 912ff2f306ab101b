"""The HTTP faces: long poll, catch-up, ingest, the Matrix paths, and a page to look at.

Thin resources over the rooms below: `site` puts them together from a `services.WebServices`,
whose fields are ports, so that this room knows no concrete writer, sender or peer. `http`
is the small router with JSON errors, `channel` bounds what a connection may cost, `security`
decides who may ask. This room may import everything from federation downward. It promises
that an answer is always one that ``/openapi.json`` describes, that nothing fails silently,
and that a request which waits costs its own memory and no work until there is news for it.
protocol.md section 13 describes the wire.
"""
