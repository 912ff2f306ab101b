"""``tcprepl conformance``: the specification as a tool."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import click

from tcprepl.addresses import Address, parse_address
from tcprepl.app.connecting import client_endpoint
from tcprepl.app.listening import server_endpoint
from tcprepl.cli import logs
from tcprepl.cli.arguments import ADDRESS, SECONDS, token_options
from tcprepl.cli.output import write_out
from tcprepl.cli.running import run_until_done
from tcprepl.clocks import Reactor
from tcprepl.conformance.client import Caller, LocalPlayer
from tcprepl.conformance.document import Block, conversations, specification
from tcprepl.conformance.notation import ConversationFailed, parse
from tcprepl.conformance.server import play
from tcprepl.conformance.target import CannotPlay, Target, writes
from tcprepl.protocol.dialects import DIALECTS

Outcome = Literal["passed", "failed", "not played"]


@dataclass(frozen=True)
class Scene:
    """A conversation, and where it stands.

    Attributes:
        section: The section of protocol.md.
        name: What it is called.
        block: The conversation.
    """

    section: str
    name: str
    block: Block

    @property
    def waits_s(self) -> int:
        """For how many seconds it waits."""
        return sum(map(int, re.findall(r"^\(after ([0-9]+) s\)$", self.block.text, re.MULTILINE)))


@dataclass(frozen=True)
class Verdict:
    """What came of a conversation.

    Attributes:
        section: The section of protocol.md.
        name: What the conversation is called.
        line: Its line in protocol.md; that of the step that failed.
        outcome: What came of it.
        expected: The step that failed.
        got: What happened instead.
        why: Why it was not played.
    """

    section: str
    name: str
    line: int
    outcome: Outcome
    expected: str = ""
    got: str = ""
    why: str = ""

    def shown(self) -> str:
        """Return it for a person."""
        head = f"{self.outcome:10}  {self.section} {self.name}"
        if self.outcome == "failed":
            got = self.got.removeprefix("got ").strip()
            place = f"protocol.md:{self.line}"
            return f"{head}\n  {place}\n  expected  {self.expected}\n  got       {got}\n"
        return f"{head}: {self.why}\n" if self.why else f"{head}\n"


def scenes(*, of_clients: bool) -> list[Scene]:
    """Return the conversations with servers, or those with clients, each with a name of its own."""
    found: list[Scene] = []
    for section, block in conversations(specification()):
        if ("client" in block.options) is of_clients:
            same = sum(scene.block.caption == block.caption for scene in found)
            name = f"{block.caption} ({same + 1})" if same else block.caption
            found.append(Scene(section.number, name, block))
    return found


def chosen(found: Sequence[Scene], only: Sequence[str], skip: Sequence[str]) -> list[Scene]:
    """Return the scenes that *only* names, if it names any, and *skip* does not."""

    def named(scene: Scene, words: Sequence[str]) -> bool:
        return any(word == scene.section or word.lower() in scene.name.lower() for word in words)

    return [one for one in found if (not only or named(one, only)) and not named(one, skip)]


class Report:
    """Says what came of each conversation, at once or as JSON in the end."""

    def __init__(self, against: str, *, as_json: bool) -> None:
        self.verdicts: list[Verdict] = []
        self._against = against
        self._as_json = as_json

    def add(self, scene: Scene, outcome: Outcome, why: str = "") -> None:
        """Note what came of *scene*."""
        self._add(Verdict(scene.section, scene.name, scene.block.number, outcome, why=why))

    def add_failure(self, scene: Scene, failure: ConversationFailed) -> None:
        """Note that *scene* failed."""
        step = failure.step
        self._add(Verdict(scene.section, scene.name, step.number, "failed", str(step), failure.got))

    def _add(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)
        if not self._as_json:
            write_out(verdict.shown().encode())

    def end(self) -> int:
        """Say the sum; return the exit code."""
        outcomes = [verdict.outcome for verdict in self.verdicts]
        counts = {name: outcomes.count(name) for name in ("passed", "failed", "not played")}
        if self._as_json:
            document: dict[str, Any] = {"against": self._against, "counts": counts}
            document["conversations"] = [asdict(verdict) for verdict in self.verdicts]
            write_out(json.dumps(document, indent=1).encode() + b"\n")
        else:
            told = ", ".join(f"{count} {name}" for name, count in counts.items())
            write_out(f"{self._against}: {told}\n".encode())
        return 0 if counts["passed"] and not counts["failed"] else 1


@click.command("conformance")
@click.argument("words", nargs=-1, metavar="ADDR | --listen ADDR [-- COMMAND...]")
@click.option("--listen", type=ADDRESS, help="Play the server: COMMAND is a client, or you are.")
@click.option("--read-only", is_flag=True, help="Play only what changes nothing in the server.")
@click.option("--write", is_flag=True, help="Write into streams that have rows already.")
@click.option("--instance", default="master", show_default=True, help="The server's own instance.")
@click.option(
    "--dialect",
    type=click.Choice([name for name, one in DIALECTS.items() if one.over_tcp]),
    default="1.22",
    show_default=True,
    help="What the server answers a bare REPLICATE in.",
)
@click.option("--restart", default="", metavar="COMMAND", help="What restarts the server.")
@click.option("--http", is_flag=True, help="The client fetches missed rows over HTTP.")
@click.option("--only", multiple=True, metavar="TEXT", help="A section, or part of a name.")
@click.option("--skip", multiple=True, metavar="TEXT", help="The same, left out.")
@click.option(
    "--longest-wait",
    "longest_s",
    type=click.IntRange(min=0),
    default=60,
    show_default=True,
    help="Leave out conversations that let more seconds pass.",
)
@click.option(
    "--patience", type=SECONDS, default=5.0, show_default=True, help="How long a line may take."
)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object in the end.")
@token_options
def command(
    words: tuple[str, ...],
    listen: Address | None,
    read_only: bool,
    write: bool,
    instance: str,
    dialect: str,
    restart: str,
    http: bool,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    longest_s: int,
    patience: float,
    as_json: bool,
    token: str | None,
) -> int:
    """Play protocol.md's conversations against a server, or a client, of your own.

    What fails is named by its line in protocol.md, with what was expected and what came. The exit
    code is 0 when all that was played went as written, and 1 otherwise.

    A server at ADDR is asked first where it is, which changes nothing. Into streams without rows it
    then writes: the rows of the conversations, an instance and a producer of a name nobody
    has; and it is told of users who sync, of acknowledgements and of a remote server. If it has
    rows, only what writes nothing is played, unless --write says that this does not matter.

    A client is a COMMAND that is started for each conversation, with its orders in the
    environment: TCPREPL_ADDR, TCPREPL_NAME, TCPREPL_SERVER, TCPREPL_FOLLOW ("typing receipts"),
    TCPREPL_KNOWN ("receipts=3"), TCPREPL_SINCE (now or start) and TCPREPL_HTTP. It prints "gets
    STREAM TOKEN ROW..." for rows and "resets STREAM from TOKEN to TOKEN".

    \b
    Example:
      $ tcprepl conformance 127.0.0.1:9092
      $ tcprepl conformance --listen 127.0.0.1:0 -- node client.js
    """
    logs.configure("warning")
    found = chosen(scenes(of_clients=listen is not None), only, skip)
    if not found:
        raise click.UsageError("no conversation is named so")
    if listen is not None:
        whom = " ".join(words) or "the client"
        return run_until_done(
            lambda reactor: _clients(
                reactor,
                listen,
                words,
                found,
                Report(whom, as_json=as_json),
                longest_s,
                patience,
                http,
            )
        )
    if len(words) != 1:
        raise click.UsageError("expected the ADDR of a server, or --listen ADDR")
    try:
        address = parse_address(words[0])
    except ValueError as error:
        raise click.UsageError(f"{words[0]!r}: {error}") from None

    async def main(reactor: Reactor) -> int:
        target = Target(
            reactor,
            client_endpoint(reactor, address),
            instance=instance,
            dialect=dialect,
            restart=restart,
            token=token or "",
            wait_s=patience,
        )
        report = Report(str(address), as_json=as_json)
        return await _servers(target, found, report, longest_s, write=write, read_only=read_only)

    return run_until_done(main)


async def _servers(
    target: Target,
    found: Sequence[Scene],
    report: Report,
    longest_s: int,
    *,
    write: bool,
    read_only: bool,
) -> int:
    streams = sorted({stream for scene in found for stream in scene.block.streams})
    try:
        in_use = (await target.probe(streams, everything=True)).in_use
    except CannotPlay as reason:
        raise click.ClickException(str(reason)) from None
    for scene in found:
        block = scene.block
        changed = writes(parse(block))
        if scene.waits_s > longest_s:
            report.add(scene, "not played", f"it takes {scene.waits_s} s (--longest-wait)")
        elif changed and read_only:
            report.add(scene, "not played", f"it would write: {', '.join(changed)} (--read-only)")
        elif changed and in_use and not write:
            why = f"it would write: {', '.join(changed)}, and the server has rows (--write)"
            report.add(scene, "not played", why)
        else:
            try:
                await play(target, block)
            except CannotPlay as reason:
                report.add(scene, "not played", str(reason))
            except ConversationFailed as failure:
                report.add_failure(scene, failure)
            else:
                report.add(scene, "passed")
    return report.end()


async def _clients(
    reactor: Reactor,
    listen: Address,
    words: Sequence[str],
    found: Sequence[Scene],
    report: Report,
    longest_s: int,
    patience: float,
    http: bool,
) -> int:
    def ask(text: str) -> None:
        sys.stderr.write(f"{text}\n")

    endpoint, _ = server_endpoint(reactor, listen, None)
    caller = Caller(reactor, endpoint, words, ask=ask, http=http, wait_s=patience)
    await caller.listen()
    try:
        for scene in found:
            why = caller.why_not(scene.block)
            if scene.waits_s > longest_s:
                report.add(scene, "not played", f"it takes {scene.waits_s} s (--longest-wait)")
            elif why:
                report.add(scene, "not played", why)
            else:
                try:
                    await LocalPlayer(caller, scene.block).play()
                except ConversationFailed as failure:
                    report.add_failure(scene, failure)
                else:
                    report.add(scene, "passed")
    finally:
        await caller.close()
    return report.end()
