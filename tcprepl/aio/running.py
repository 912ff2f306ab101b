"""What the client and the writer under asyncio have in common: they run, on a connection."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable
from typing import Self

from tcprepl.replication.following.client import ReplicationClient
from tcprepl.replication.following.writer import ReplicationWriter


class Running(ABC):
    """Runs while it is entered."""

    #: What does the work.
    _service: ReplicationClient | ReplicationWriter

    @abstractmethod
    def start(self) -> None:
        """Begin."""

    @abstractmethod
    def stop(self) -> Awaitable[None]:
        """Stop."""

    async def __aenter__(self) -> Self:
        """Start."""
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop."""
        await self.stop()

    @property
    def connected(self) -> bool:
        """Whether a connection is up on which the server has answered."""
        return self._service.connected

    @property
    def reconnects(self) -> int:
        """Connections made after the first."""
        return self._service.reconnects

    @property
    def last_error(self) -> str | None:
        """Why the newest connection ended or could not be made; None at first."""
        return self._service.last_error
