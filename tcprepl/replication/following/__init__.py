"""The client library: connect, resume, hand batches to a handler, once and in order."""
