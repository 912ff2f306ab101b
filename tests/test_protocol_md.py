"""protocol.md is true: its tables equal the code's, its grammar works, its conversations run."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import abnf
import pytest
from canonicaljson import encode_canonical_json
from signedjson.key import decode_signing_key_base64, get_verify_key
from signedjson.sign import verify_signed_json
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from tcprepl import errors, limits
from tcprepl.conformance.document import Block, conversations
from tcprepl.conformance.notation import ConversationFailed, parse
from tcprepl.ephemeral.presence_states import NOTIFIES
from tcprepl.errors import CloseReason, LocalProtocolError, RemoteProtocolError
from tcprepl.protocol.client_session import ClientSession
from tcprepl.protocol.commands import RdataCommand, Reason
from tcprepl.protocol.dialects import DIALECTS, Dialect
from tcprepl.protocol.events import Closing
from tcprepl.protocol.parsing import parse_line
from tcprepl.protocol.serializing import serialize
from tcprepl.protocol.server_session import ServerSession
from tcprepl.protocol.specs import COMMANDS
from tcprepl.protocol.state import Role, State
from tcprepl.replication.bus.commands import COMMANDS as BUS_COMMANDS
from tcprepl.streams.registry import BUILT_IN, Registry
from tests import docs_md
from tests.conversation import (
    SERVER_NAME,
    START_S,
    MemoryStage,
    SocketStage,
    Stage,
)
from tests.conversation_client import ClientStage, MemoryClientStage, SocketClientStage
from tests.conversation_http import HttpStage, parse_exchanges
from tests.conversation_resp import RespStage
from tests.docs_md import ROOT, Document, plain
from tests.faces import FACES, using
from tests.harness import CAPTURE
from tests.sessions import receive

DOCUMENT = Document.load()

TITLES = (
    "Purpose and version",
    "Terms",
    "Conventions",
    "Grammar",
    "Connection life",
    "Commands",
    "Streams",
    "Conversations",
    "Liveness",
    "Flow control",
    "Limits",
    "Errors",
    "HTTP",
    "Federation transactions",
    "Compatibility",
    "Security",
    "Notes for implementers",
)


class Grammar(abnf.Rule):
    """The rules of section 4."""


Grammar.load_grammar(DOCUMENT.sections["4"].blocks("abnf")[0].text)


def accepts(line: str) -> bool:
    """Return whether the grammar accepts *line*, delimiter included."""
    try:
        Grammar("line").parse_all(line)
    except abnf.ParseError:
        return False
    return True


def example_lines() -> list[tuple[str, str]]:
    """Return (``S`` or ``C``, line) of every ```example block."""
    found = []
    for block in DOCUMENT.blocks("example"):
        for line in block.lines:
            mark, _, text = line.partition("> ")
            assert mark in ("S", "C"), f"protocol.md:{block.number}: {line}"
            found.append((mark, text))
    return found


def dialects_of(line: str) -> list[Dialect]:
    """Return the dialects in which *line* reads and is written again as it stands."""
    found = []
    for dialect in DIALECTS.values():
        try:
            command = parse_line(line.encode(), dialect)
            if serialize(command, dialect).decode() == f"{line}\n":
                found.append(dialect)
        except (RemoteProtocolError, LocalProtocolError):
            continue
    return found


# -- the document ----------------------------------------------------------------------


def test_sections_are_those_that_were_agreed() -> None:
    """Seventeen parts, in this order, so that a reference to one stays right."""
    parts = [s for s in DOCUMENT.sections.values() if s.number and "." not in s.number]
    assert [(s.number, s.title) for s in parts] == [
        (str(number), title) for number, title in enumerate(TITLES, 1)
    ]


def test_every_reference_leads_somewhere() -> None:
    """``section 7.2`` names a section that there is, here and in the code."""
    texts = {"protocol.md": DOCUMENT.text}
    for path in sorted((ROOT / "tcprepl").rglob("*.py")):
        texts[str(path.relative_to(ROOT))] = path.read_text(encoding="utf-8")
    dangling = []
    for name, text in texts.items():
        pattern = (
            r"\bsections? ([0-9]+(?:\.[0-9]+)?(?:(?:, | and | to )[0-9]+(?:\.[0-9]+)?)*)"
            if name == "protocol.md"
            else r"protocol\.md\s+sections? ([0-9.]+(?:(?:, | and | to )[0-9]+(?:\.[0-9]+)?)*)"
        )
        for found in re.finditer(pattern, text):
            numbers = re.findall(r"[0-9]+(?:\.[0-9]+)?", found.group(1))
            dangling += [(name, n) for n in numbers if n not in DOCUMENT.sections]
    assert dangling == []


def test_tables_of_references_lead_somewhere() -> None:
    """The column Part of the table of commands names the part that tells of the command."""
    table = DOCUMENT.sections["6.1"].table("Command")
    for word, part in zip(table.column("Command"), table.column("Part"), strict=True):
        assert word in DOCUMENT.sections[part].title


def test_no_path_of_a_machine_is_in_it() -> None:
    """The document speaks of the protocol alone."""
    assert not re.search(r"(?:^|[\s`(])/(?:home|root|tmp|usr|work|var)/", DOCUMENT.text)


# -- section 4: the grammar ------------------------------------------------------------


def test_grammar_is_the_one_of_the_code() -> None:
    """What is printed is what `tcprepl.protocol.grammar` has."""
    (block,) = DOCUMENT.sections["4"].blocks("abnf")
    assert list(block.lines) == docs_md.abnf()


def test_grammar_defines_every_rule_it_uses() -> None:
    """A rule that is used is defined."""
    undefined = [rule.name for rule in Grammar.rules() if not hasattr(rule, "definition")]
    assert undefined == []


@pytest.mark.parametrize(("mark", "line"), example_lines())
def test_example_line_is_accepted_everywhere(mark: str, line: str) -> None:
    """The grammar takes it, the codec reads it, and writes it again as it stands."""
    assert accepts(f"{line}\n")
    assert accepts(f"{line}\r\n")
    word = line.split(" ")[0].upper()
    ends = {"S": Role.SERVER, "C": Role.CLIENT}
    assert ends[mark] in COMMANDS[word].sent_by
    if line.split(" ")[0].isupper() and word != "INVALIDATE_CACHE":
        assert dialects_of(line.rstrip()) or dialects_of(f"{line.rstrip()} ")


def test_every_line_that_the_codec_writes_is_accepted() -> None:
    """Each example, written in each dialect that has words for it."""
    written = set()
    for _, line in example_lines():
        for reading in DIALECTS.values():
            try:
                command = parse_line(line.encode(), reading)
            except RemoteProtocolError:
                continue
            for writing in DIALECTS.values():
                try:
                    written.add(serialize(command, writing).decode())
                except LocalProtocolError:
                    continue
    assert len(written) > len(example_lines())
    assert [line for line in written if not accepts(line)] == []


def test_every_line_of_a_real_server_is_accepted() -> None:
    """A capture of Synapse 1.66."""
    lines = CAPTURE.read_bytes().decode().splitlines(keepends=True)
    assert len(lines) > 100
    assert [line for line in lines if not accepts(line)] == []


@pytest.mark.parametrize(
    "line",
    [
        "",
        "RUBBISH\n",
        "REPLICATE typing\n",
        "REPLICATE  typing NOW\n",
        "POSITION typing master five\n",
        "POSITION typing master 123456789012345678901\n",
        "USER_SYNC @a:x begin 5\n",
        "FEDERATION_ACK\n",
        "SERVER a b\n",
        "PING 1\nPING 2\n",
    ],
)
def test_grammar_refuses_what_is_no_line(line: str) -> None:
    """It would be no grammar if it took everything."""
    assert not accepts(line)


# -- section 5: states -----------------------------------------------------------------


@pytest.mark.parametrize(("role", "number"), [(Role.SERVER, "5.2"), (Role.CLIENT, "5.3")])
def test_diagram_and_table_are_those_of_the_state_table(role: Role, number: str) -> None:
    """The diagram is drawn from `TRANSITIONS`, and so is the table of what changes nothing."""
    section = DOCUMENT.sections[number]
    (block,) = section.blocks("mermaid")
    assert list(block.lines) == docs_md.diagram(role)
    assert list(section.table("State").rows) == docs_md.loops(role)


def test_every_state_is_explained() -> None:
    """The table of states has all of them, in order."""
    table = DOCUMENT.sections["5"].table("State")
    assert [plain(name) for name in table.column("State")] == [state.value for state in State]


# -- section 6: commands ---------------------------------------------------------------


def test_commands_are_those_of_the_code() -> None:
    """Name, sender, states and dialects of each command; no more and no fewer."""
    table = DOCUMENT.sections["6.1"].table("Command")
    assert [row[:4] for row in table.rows] == [docs_md.command_row(word) for word in COMMANDS]


def test_every_command_has_syntax_duty_and_example() -> None:
    """Each part from 6.2 on tells the same things of its commands."""
    parts = [s for s in DOCUMENT.under("6") if s.number not in ("6", "6.1")]
    told = []
    for section in parts:
        words = re.findall(r"`([A-Z_]+)`", section.title)
        told += words
        syntax = section.blocks("text")[0].text
        example = section.blocks("example")[0].text.upper()
        assert any(line.startswith("**Receiver**") for line in section.lines), section.title
        for word in words:
            assert re.search(rf"^{word}\b", syntax, re.MULTILINE), word
            assert f"> {word}" in example, word
    assert sorted(told) == sorted(COMMANDS)


def test_reasons_are_those_of_the_code() -> None:
    """Each reason for which rows are refused, what its value is, and what to do."""
    table = DOCUMENT.sections["6.17"].table("Reason")
    assert [plain(name) for name in table.column("Reason")] == [reason.value for reason in Reason]
    assert all(len(cell) > 3 for row in table.rows for cell in row[2:])


# -- section 7: streams ----------------------------------------------------------------


def test_streams_are_those_of_the_registry() -> None:
    """Name, row, kind, key and offer of each stream."""
    table = DOCUMENT.sections["7.7"].table("Stream")
    assert [row[:5] for row in table.rows] == [docs_md.stream_row(stream) for stream in BUILT_IN]


def test_every_stream_has_an_example_row_that_fits() -> None:
    """The examples of 7.8 decode as rows of their streams, and come out again as they went in."""
    registry = Registry()
    shown = set()
    for block in DOCUMENT.sections["7.8"].blocks("example"):
        for line in block.lines:
            command = parse_line(line.removeprefix("S> ").encode(), DIALECTS["1.22"])
            assert isinstance(command, RdataCommand)
            row = registry.decode_row(command.stream, command.row)
            assert registry.encode_rows(command.stream, [row]) == [command.row]
            shown.add(command.stream)
    assert shown == {stream.name for stream in BUILT_IN}


def test_times_of_typing_and_presence_are_those_of_the_code() -> None:
    """How long somebody types, and what time does to a presence state."""
    assert list(DOCUMENT.sections["7.9"].table("What").rows) == docs_md.typing_rows()
    assert list(DOCUMENT.sections["7.10"].table("Deadline").rows) == docs_md.deadline_rows()
    told = DOCUMENT.sections["7.10"].table("Others are told when").column("Others are told when")
    assert [re.findall("`([a-z_]+)`", cell)[0] for cell in told] == [n for n, _ in NOTIFIES]


# -- sections 11, 12 and 15: limits, errors, dialects ----------------------------------


def test_limits_are_those_of_the_code() -> None:
    """Every bound with its value and unit, its side, and what happens beyond it."""
    table = DOCUMENT.sections["11"].table("Limit")
    values = {name: value for name, value in vars(limits).items() if name.isupper()}
    assert [plain(name) for name in table.column("Limit")] == list(values)
    for name, value, unit, side, beyond in table.rows:
        known = values[plain(name)]
        assert type(known)(value) == known, name
        assert unit == docs_md.unit_of(plain(name)), name
        assert side in {"server", "client", "both", "writer", "HTTP", "federation"}, name
        assert len(beyond) > 2, name


def _leaves(kind: type[RemoteProtocolError]) -> set[type[RemoteProtocolError]]:
    below = kind.__subclasses__()
    named = {sub for sub in below if sub.__module__ == errors.__name__}
    return named.union(*map(_leaves, named))


#: What breaks each rule: whether a client reads it, and the bytes.
BROKEN: dict[str, tuple[bool, bytes]] = {
    "UnknownCommand": (False, b"RUBBISH one two\n"),
    "MalformedCommand": (False, b"REPLICATE typing master soon\n"),
    "UnexpectedCommand": (False, b"RDATA typing master 1 []\n"),
    "LineTooLong": (False, b"x" * 20_000),
    "BadEncoding": (False, b"NAME \xff\n"),
    "WrongProtocol": (False, b"\x16\x03\x01\x02\x00\x01"),
    "WrongServer": (True, b"SERVER example.org\n"),
    "TooManyErrors": (False, b"RUBBISH\n" * limits.MAX_BAD_LINES),
    "LostRow": (
        True,
        b"SERVER example.com\nPING 1 tcprepl/1\nPOSITION typing master 0 0\n"
        b"RDATA typing master five []\n",
    ),
}


def said(error: str) -> str:
    """Return the last ERROR that a session says when this rule is broken."""
    by_client, data = BROKEN[error]
    session = (
        ClientSession(START_S, server_name=SERVER_NAME)
        if by_client
        else ServerSession(SERVER_NAME, START_S)
    )
    receive(session, data, START_S)
    lines = session.data_to_send().decode().splitlines()
    return lines[-1].removeprefix("ERROR ")


def test_errors_say_what_the_document_shows() -> None:
    """The texts, word for word."""
    table = DOCUMENT.sections["12.1"].table("Error")
    shown = {plain(row[0]): row[-1].strip("`") for row in table.rows}
    assert shown == {error: said(error) for error in shown}


def test_errors_are_those_of_the_code() -> None:
    """Each rule that a peer can break, and whether the connection survives it."""
    rows = DOCUMENT.sections["12.1"].table("Error").by_first()
    kinds = {f"`{kind.__name__}`": kind for kind in _leaves(RemoteProtocolError)}
    assert set(rows) == set(kinds)
    for name, (_, cause, after, duty, _) in rows.items():
        assert after == ("open" if kinds[name].close_reason is None else "closed"), name
        assert cause, name
        assert duty, name


def test_texts_of_errors_are_those_of_the_code() -> None:
    """The texts of 12.2 and 12.3 stand in the source that says them."""
    source = "".join(
        path.read_text(encoding="utf-8")
        for room in ("protocol", "replication")
        for path in sorted((ROOT / "tcprepl" / room).rglob("*.py"))
    )
    joined = re.sub(r'"\s*\n\s*f?"', "", source)
    for number in ("12.2", "12.3"):
        for cell in DOCUMENT.sections[number].table("Text begins with").column("Text begins with"):
            parts = re.split(r"\b(?:STREAM|INSTANCE|K|P|T|N)\b", plain(cell))
            pattern = r"\{[^{}]*\}".join(map(re.escape, parts))
            assert re.search(pattern, joined), cell


def test_close_reasons_are_those_of_the_code() -> None:
    """Each way a connection ends."""
    table = DOCUMENT.sections["12.4"].table("Reason")
    assert [plain(name) for name in table.column("Reason")] == [r.value for r in CloseReason]
    for name, meaning in table.rows:
        named = getattr(errors, plain(meaning), None)
        if named is not None:
            assert named.close_reason is CloseReason(plain(name))


def test_dialects_are_those_of_the_code() -> None:
    """What tells the dialects apart."""
    table = DOCUMENT.sections["15.2"].table("Dialect")
    assert [row[:7] for row in table.rows] == [docs_md.dialect_row(d) for d in DIALECTS.values()]


def test_commands_of_the_bus_are_those_of_the_code() -> None:
    """The table names every command that there is, and no other."""
    table = DOCUMENT.sections["15.7"].table("Command")
    told = {plain(cell).lower() for cell in table.column("Command")}
    assert told == BUS_COMMANDS.keys()


@pytest.mark.parametrize("number", [0, 1])
def test_conversation_with_the_bus(number: int) -> None:
    """What clients say to it in Redis's place is answered as told."""
    RespStage().run(DOCUMENT.sections["15.7"].blocks("resp")[number])


def test_every_cell_of_the_compatibility_table_names_a_test() -> None:
    """``test_x.py::test_y[z]`` exists, or the cell says that there is nothing."""
    table = DOCUMENT.sections["15.6"].table("Feature")
    for row in table.rows:
        for release, cell in zip(table.header[1:], row[1:], strict=True):
            names = re.findall(r"`([^`:]+)::(\w+)\[([^\]`]+)\]`", cell)
            assert names or cell in ("-", "not tried"), cell
            for path, test, parameter in names:
                source = (ROOT / "tests" / "interop" / path).read_text(encoding="utf-8")
                assert f"def {test}(" in source, f"{path}::{test}"
                assert release.startswith(parameter.split("-")[0]), cell


# -- section 13: HTTP ------------------------------------------------------------------

EXCHANGES = [
    (f"{section.number} {block.caption or block.number}", block)
    for section in DOCUMENT.under("13")
    for block in section.blocks("http")
]


def _named(pairs: list[tuple[str, Block]]) -> list[Any]:
    seen: dict[str, int] = {}
    found = []
    for name, block in pairs:
        seen[name] = seen.get(name, 0) + 1
        label = name if seen[name] == 1 else f"{name} ({seen[name]})"
        found.append(pytest.param(block, id=label))
    return found


@pytest.mark.parametrize("block", _named(EXCHANGES))
def test_http_exchange(block: Block) -> None:
    """The site answers as written."""
    stage = HttpStage(guarded="Bearer guess" in block.text)
    stage.perform(parse_exchanges(block))
    stage.close()


def test_tables_of_the_long_poll_are_those_of_the_code() -> None:
    """Parameters, tables and columns."""
    table = DOCUMENT.sections["13.1"].table("Query parameter")
    assert list(table.rows) == docs_md.feed_rows()


def test_paths_are_those_of_the_site() -> None:
    """Every path that the site has is in the table, and the reverse."""
    table = DOCUMENT.sections["13"].table("Path")
    told = {(method, plain(path)) for path, methods, *_ in table.rows for method in methods.split()}
    stage = HttpStage(guarded=False)
    served = set()
    for method, path in stage.paths():
        if path.startswith("/_matrix/client/"):
            served.add((method, "/_matrix/client/..."))
        else:
            served.add((method, path))
    stage.close()
    signed = {(m, p) for m, p in told if p.startswith(("/_matrix/federation/", "/_matrix/key/"))}
    assert served | signed == told
    assert served >= told - signed


# -- section 14: federation -------------------------------------------------------------


def test_shards_lanes_and_bounds_are_those_of_the_code() -> None:
    """Who sends what, how it shares a transaction, and what bounds one."""
    shards = DOCUMENT.sections["14.1"].table("Destination")
    assert list(shards.rows) == docs_md.shard_rows()
    lanes = DOCUMENT.sections["14.2"].table("Lane")
    assert list(lanes.rows) == docs_md.lane_rows()
    bounds = DOCUMENT.sections["14.3"].table("Bound")
    assert [row[:2] for row in bounds.rows] == docs_md.transaction_rows()


def test_shards_are_those_of_an_independent_computation() -> None:
    """The rule as the text has it."""
    for destination, sender in DOCUMENT.sections["14.1"].table("Destination").rows:
        digest = hashlib.sha256(plain(destination).encode()).digest()
        number = sum(byte << (8 * place) for place, byte in enumerate(digest))
        assert plain(sender) == "abc"[number % 3]


def test_worked_example_is_what_the_code_makes_and_others_verify() -> None:
    """The body, what is signed, and the header."""
    section = DOCUMENT.sections["14.3"]
    shown = {kind: section.blocks(kind)[0].lines[0] for kind in docs_md.worked_example()}
    assert shown == docs_md.worked_example()
    assert encode_canonical_json(json.loads(shown["transaction"])).decode() == shown["transaction"]
    signed = json.loads(shown["signed"])
    assert encode_canonical_json(signed).decode() == shown["signed"]
    assert signed["content"] == json.loads(shown["transaction"])
    fields = dict(re.findall(r'([a-z]+)="([^"]*)"', shown["authorization"]))
    signed["signatures"] = {fields["origin"]: {fields["key"]: fields["sig"]}}
    seed = decode_signing_key_base64("ed25519", "1", "A" * 43)
    verify_signed_json(signed, "a.example", get_verify_key(seed))


def test_back_off_is_that_of_the_code() -> None:
    """The words of 14.4 have the numbers of the default policy."""
    text = " ".join(DOCUMENT.sections["14.4"].lines)
    for words in docs_md.backoff_words().values():
        assert words in text


# -- section 8: conversations ----------------------------------------------------------

CONVERSATIONS = [
    (f"{section.number} {block.caption}", block) for section, block in conversations(DOCUMENT.text)
]


async def _act(stage: Stage | ClientStage, block: Block) -> None:
    try:
        await stage.perform(parse(block))
    finally:
        await stage.end()


def _in_memory(block: Block, cut: int | None) -> MemoryStage:
    stage = MemoryStage(block.streams, block.options.get("dialect", "auto"), cut)
    _act_at_once(stage, block)
    return stage


def _act_at_once(stage: Stage | ClientStage, block: Block) -> None:
    done: list[object] = []
    _ = Deferred.fromCoroutine(_act(stage, block)).addBoth(done.append)
    assert done, "the conversation waits for something"
    if done[0] is not None:
        done[0].raiseException()  # type: ignore[attr-defined]  # a Failure


WITH_OUR_CLIENT = [(name, block) for name, block in CONVERSATIONS if "client" in block.options]
WITH_OUR_SERVER = [pair for pair in CONVERSATIONS if pair not in WITH_OUR_CLIENT]
IN_MEMORY = [(name, block) for name, block in WITH_OUR_SERVER if "restart" not in block.options]


@pytest.mark.parametrize("block", _named(IN_MEMORY))
def test_conversation_in_memory(block: Block) -> None:
    """It goes as written, and what our server says, our client and the grammar understand."""
    stage = _in_memory(block, None)
    if "other-protocol" in block.options:
        return
    for talker in stage.everybody:
        lines = talker.received.decode().splitlines(keepends=True)
        # Parsing by the grammar is slow, and the rows of a flood are alike.
        some = lines if len(lines) < 400 else lines[:200] + lines[-200:]
        assert [line for line in some if not accepts(line)] == []
        session = ClientSession(
            START_S, server_name=SERVER_NAME, dialect=block.options.get("reader", "auto")
        )
        events = receive(session, talker.received, START_S)
        assert not [event for event in events if isinstance(event, Closing)]


@pytest.mark.parametrize("block", _named(IN_MEMORY))
def test_conversation_byte_by_byte(block: Block) -> None:
    """It goes the same way when every byte comes alone."""
    _in_memory(block, 1)


@pytest.mark.parametrize("cut", [None, 1], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("block", _named(WITH_OUR_CLIENT))
def test_conversation_of_our_client(block: Block, face: str, cut: int | None) -> None:
    """Our client says and does what is written, whatever its face."""
    with using(FACES[face]):
        _act_at_once(MemoryClientStage(cut), block)


class OverSockets(TestCase):
    """Each conversation over a real socket, with the log on a real disk."""


def _over_sockets(block: Block) -> Callable[[OverSockets], Deferred[None]]:
    def test(self: OverSockets) -> Deferred[None]:
        options = block.options
        stage: Stage | ClientStage
        if "client" in options:
            stage = SocketClientStage(reactor)
        else:
            dialect = options.get("dialect", "auto")
            directory = tempfile.mkdtemp()
            self.addCleanup(shutil.rmtree, directory)
            stage = SocketStage(reactor, block.streams, dialect, directory)
        return Deferred.fromCoroutine(_act(stage, block))

    return test


for _parameter in _named(CONVERSATIONS):
    _name = re.sub(r"\W+", "_", _parameter.id).strip("_").lower()
    setattr(OverSockets, f"test_{_name}", _over_sockets(_parameter.values[0]))


# -- section 17: the tour ---------------------------------------------------------------


def test_tour_with_netcat_goes_as_told() -> None:
    """What a person types is answered with the words that the table shows."""

    async def tour(stage: MemoryStage) -> None:
        await stage.log.append("typing", "master", [b'["!room:example.com",["@ann:example.com"]]'])
        for typed, seen in DOCUMENT.sections["17.4"].table("You type").rows:
            talker = await stage.connect()
            talker.received = b""
            stage.send(talker, f"{plain(typed)}\n".encode())
            await stage.settle()
            words = [line.split(" ")[0] for line in talker.received.decode().splitlines()]
            assert set(words) == set(re.findall("`([A-Z]+)`", seen)), typed
            assert not talker.closed
        await stage.end()

    done: list[object] = []
    _ = Deferred.fromCoroutine(tour(MemoryStage(["typing"], "auto"))).addBoth(done.append)
    assert done == [None], done


def test_tour_with_curl_goes_as_told() -> None:
    """The commands are answered with 200."""
    stage = HttpStage(guarded=False)
    commands = [
        shlex.split(line)
        for block in DOCUMENT.sections["17.4"].blocks("sh")
        for line in block.lines
        if line.startswith("curl ")
    ]
    assert commands
    for _, *options, url in commands:
        path = url.removeprefix("http://127.0.0.1:9093")
        body = options[1:] if options else []
        status, _, text = stage.request(f"{'POST' if body else 'GET'} {path}", *body)
        assert status == "200", text
    stage.close()


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (("S> SERVER example.org",), "got  SERVER example.com"),
        (("S> SERVER example.com", "S> PING ...", "S> INFO hello"), "nothing comes"),
        (("S> SERVER example.com", "(the connection is open)"), "got  PING"),
        (("S> ...", "(the connection is closed)"), "the connection is open"),
        (("S> SERVER example.com", "(it rains)"), "no such direction"),
    ],
)
def test_conversation_that_is_not_true_fails(lines: tuple[str, ...], complaint: str) -> None:
    """The runner can say no."""
    block = Block("conversation", ("(streams: typing)", *lines), 1, "")
    with pytest.raises(ConversationFailed, match=re.escape(complaint)):
        _in_memory(block, None)


def test_conversation_that_is_not_in_the_notation_is_refused() -> None:
    """A typing error in the document is not silently skipped."""
    with pytest.raises(ValueError, match="not in the notation"):
        parse(Block("conversation", ("X> what",), 1, ""))
