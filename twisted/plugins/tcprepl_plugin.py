"""Makes ``twist tcprepl`` known to Twisted: see `tcprepl.cli.twist`."""

from twisted.application.service import ServiceMaker

tcprepl = ServiceMaker(
    "tcprepl", "tcprepl.cli.twist", "A server of the replication plane.", "tcprepl"
)
