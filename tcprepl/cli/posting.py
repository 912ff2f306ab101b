"""Publishing many rows: how many were taken, and which one was not."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tcprepl.addresses import LINES_URL
from tcprepl.cli.api import Api, ApiFailed
from tcprepl.errors import TcpreplError


class NotTaken(TcpreplError):
    """Rows that were refused, or that nobody answered for: says which, why, and what was taken."""


def refused(error: Exception, row: int, place: str) -> str:
    """Return the refusal of a row in words, by its place in the input.

    Args:
        error: The refusal, which counts the rows of its own call, from 0.
        row: The number that it gives.
        place: What a person calls it.
    """
    return f"{place}: {re.sub(rf', row {row}(?=[:,])', '', str(error), count=1)}"


def story(taken: int) -> str:
    """Return how many rows were taken before one was not, in words."""
    if not taken:
        return "no row was taken"
    return "1 row before was taken" if taken == 1 else f"{taken} rows before were taken"


def story_of_lines(address: str) -> str:
    """Return how rows go to a port that turned out to be of the line protocol."""
    return f"write --to {LINES_URL}{address} to publish there"


class Posting:
    """Publishes chunks of rows, one after the other.

    Args:
        api: The server.
        transaction_id: Makes the whole safe to repeat, as long as the chunks are the same.

    Attributes:
        taken: Rows that are safe.
    """

    def __init__(self, api: Api, transaction_id: str) -> None:
        self.taken = 0
        self._api = api
        self._transaction_id = transaction_id
        self._chunks = 0

    def post(
        self,
        stream: str,
        rows: Sequence[bytes],
        places: Sequence[str],
        *,
        batch: bool,
        instance: str | None,
    ) -> tuple[str, list[int]]:
        """Publish a chunk.

        Args:
            stream: The stream.
            rows: The rows as JSON.
            places: Where each of them comes from, in words.
            batch: Whether they share one token.
            instance: Who writes them; the server's own instance by default.

        Returns:
            The instance that they went to, and the token of each.

        Raises:
            NotTaken: They are not all safe; the message says how many are.
            ConfigError: There is no such stream.
        """
        number, self._chunks = self._chunks, self._chunks + 1
        try:
            found = self._api.post_rows(
                stream,
                list(rows),
                batch=batch,
                instance=instance,
                transaction_id=f"{self._transaction_id}.{number}",
            )
        except ApiFailed as error:
            hint = f"\n  {story_of_lines(error.lines_at)}" if error.lines_at else ""
            raise NotTaken(f"{self._placed(error, places)}{hint}\n  {self.story()}") from None
        self.taken += len(rows)
        return found

    def _placed(self, error: ApiFailed, places: Sequence[str]) -> str:
        index = error.refusal.get("row")
        if isinstance(index, int) and 0 <= index < len(places):
            return refused(error, index, places[index])
        return f"{places[0] if len(places) == 1 else f'{places[0]} to {places[-1]}'}: {error}"

    def story(self) -> str:
        """Return how many rows were taken, in words."""
        return story(self.taken)
