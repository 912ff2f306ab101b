"""What operators do to federation senders: another list of them, and an older copy of an outbox.

Each is done as the documentation has it (`tcprepl/docs/federation.md`, `backup.md`), and the
remotes are told what may come of it: what is promised afterwards is less, and no less than that.
"""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from tcprepl.errors import LogError
from tcprepl.federation.sending.journal import Journal
from tcprepl.federation.sending.outbox_file import OUTBOX_FILE
from tcprepl.federation.sending.sharding import responsible_sender
from tcprepl.federation.sending.stored import unpack_entry
from tcprepl.ids import InstanceName, Pair
from tcprepl.storage.backup import make_backup, restore_backup
from tests.simulation.federation import Sender
from tests.simulation.machines import Machine

if TYPE_CHECKING:
    from tests.simulation.world import World

FEDERATION: Pair = ("federation", "master")
#: How many senders there may be, those that were taken away too.
MOST_SENDERS = 5
#: How long an operator waits until all senders have everything, and until one has stopped.
DRAIN_S = 60
STOP_S = 10.0
#: How much later than the others one may be started.
LATE_S = 20.0


class StoredEdus(NamedTuple):
    """What is in an outbox that nobody has open.

    Attributes:
        edus: Destination and number of each EDU: type and key of those that have one, else None.
        position: Up to where rows are in it.
    """

    edus: dict[tuple[str, int], tuple[str, str] | None]
    position: int

    def moved(self, names: set[str]) -> StoredEdus:
        """Return what is for one of *names*."""
        return StoredEdus(
            {edu: key for edu, key in self.edus.items() if edu[0] in names}, self.position
        )


class Copy(NamedTuple):
    """A copy of a sender's directory: where, what is in it, and how far it had read."""

    where: Path
    kept: StoredEdus


def stored_in(directory: Path) -> StoredEdus:
    """Return what is in the outbox in *directory*, and leave it as it is."""
    with closing(sqlite3.connect(":memory:")) as connection:
        with closing(sqlite3.connect(directory / OUTBOX_FILE)) as found:
            found.backup(connection)
        cursor = connection.cursor()
        Journal(cursor).settle(cursor)
        edus: dict[tuple[str, int], tuple[str, str] | None] = {}
        rows = cursor.execute("SELECT id, destination, expires_ms, edu FROM edus").fetchall()
        for edu_id, destination, expires_ms, packed in rows:
            edu = unpack_entry(edu_id, destination, expires_ms, packed)[2]
            number = msgspec.json.decode(bytes(edu.content))["n"]
            edus[destination, number] = (edu.edu_type, str(edu.key[0])) if edu.key else None
        position = cursor.execute(
            "SELECT token FROM positions WHERE (stream, instance) = (?, ?)", FEDERATION
        ).fetchone()
        return StoredEdus(edus, position[0] if position else 0)


def change_senders(world: World, chance: random.Random) -> None:
    """Let other senders share the destinations: one more, one less, or another order.

    Nobody queues EDUs from the moment at which all senders have everything until they are stopped;
    else what is between the positions of two would have no sender that takes it, or two.
    """
    before = world.sender_names
    kind = chance.choice(["one more", "one less", "another order"])
    after, fresh = _changed(world, kind, chance)
    if after == before:
        return
    senders = [sender for sender in world.senders if sender.name in before]
    why = _not_drained(world, senders)
    if why:
        world.saw("senders: not changed", why)
        return
    for sender in senders:
        sender.supervised = False  # an operator has stopped it
        _stop(world, sender, chance)
    names = world.remotes.names
    moved = {name for name in names if _owner(name, before) != _owner(name, after)}
    waiting = [stored_in(sender.disk.directory).moved(moved) for sender in senders]
    for kept in waiting:
        world.remotes.may_be_passed(kept)
    if fresh is not None:
        head = world.server.log.position(*FEDERATION)
        new = {name for name in moved if _owner(name, after) == fresh.name}
        world.remotes.may_be_twice_above(head - 1, new)
        _wipe(world, fresh)
    world.saw(
        f"senders: {kind}",
        "EDUs wait that move" if any(kept.edus for kept in waiting) else "nothing waits that moves",
    )
    world.sender_names = after
    if chance.random() < 0.5:
        world.server.send_queue.senders = after
        world.saw("server takes up the senders", "by a reload")
    else:
        _stop(world, world.server, random.Random(0))
        world.server.boot()
        world.saw("server takes up the senders", "by a start")
    late = fresh or chance.choice(world.senders)
    late = late if chance.random() < 0.5 else None
    for sender in world.senders:
        sender.copies.clear()  # of another list: they are not put back any more
        sender.supervised = True
        if sender is late:
            world.universe.later(LATE_S, sender._boot_if_wanted)
        else:
            sender.boot()


def _changed(
    world: World, kind: str, chance: random.Random
) -> tuple[tuple[InstanceName, ...], Sender | None]:
    """Return another list of senders, and who comes anew."""
    names = list(world.sender_names)
    if kind == "another order":
        chance.shuffle(names)
    elif kind == "one less" and len(names) > 1:
        names.remove(chance.choice(names))
    elif kind == "one more":
        fresh = next((one for one in world.senders if one.name not in names and one.is_empty), None)
        if fresh is None and len(world.senders) < MOST_SENDERS:
            fresh = Sender(world, f"fed{len(world.senders) + 1}")
            world.senders.append(fresh)
            world.machines.append(fresh)
        if fresh is not None:
            names.insert(chance.randrange(len(names) + 1), fresh.name)
            return tuple(names), fresh
    return tuple(names), None


def _owner(name: str, senders: tuple[InstanceName, ...]) -> InstanceName | None:
    return responsible_sender(name, senders)


def _not_drained(world: World, senders: list[Sender]) -> str:
    """Wait until all senders have everything; return why that does not come to pass."""
    server = world.server
    why = ""
    for _ in range(DRAIN_S):
        world.universe.run(1.0)  # what was queued just now is in the log
        if not server.up or server.process.frozen or server.disk.mood != "ok" or server.log.trouble:
            why = f"server, {server.state()}"
        elif any(not sender.up for sender in senders):
            why = "a sender is down"
        else:
            head = server.log.position(*FEDERATION)
            acknowledged = server.send_queue.acknowledged().values()
            if not server.threads[0].busy and all(token == head for token in acknowledged):
                return ""
            why = "a sender does not have everything"
    return why


def _stop(world: World, machine: Machine, chance: random.Random) -> None:
    """Stop somebody in order, or kill who does not stop."""
    if not machine.up:
        return
    if chance.random() < 0.3 and isinstance(machine, Sender):
        machine.kill(restart_s=None)
        return
    stopped = machine.stop()
    for _ in range(int(STOP_S)):
        if stopped.called:
            break
        world.universe.run(1.0)
    stopped.addErrback(lambda _: None)
    if machine.up:
        machine.end_process()


def _wipe(world: World, sender: Sender) -> None:
    """Let a sender begin with an empty directory."""
    _stop(world, sender, random.Random(0))
    for path in sender.disk.directory.iterdir():
        path.unlink()


def copy_outbox(world: World, sender: Sender) -> None:
    """Copy a sender's directory while it goes on."""
    target = world.where / f"{sender.name}-backup-{world.universe.steps}"
    try:
        make_backup(sender.disk.directory, target, "test")
    except (LogError, OSError) as error:
        world.saw("copy an outbox", type(error).__name__)
        return
    kept = stored_in(target)
    if kept.position:  # else it is as good as an empty directory, and its sender knows of no loss
        sender.copies.append(Copy(target, kept))
    world.saw("copy an outbox", sender.state() if kept.position else "that has read nothing yet")


def put_back_outbox(world: World, sender: Sender, copy: Copy) -> None:
    """Put an older copy of a sender's directory in its place.

    What it sent after the copy, it sends again. What it took after the copy is read again if the
    writer still has it; else it is told as lost, and what of it was not sent yet is.
    """
    world.saw("put back an outbox", sender.state())
    sender.supervised = False
    sender.kill(restart_s=None)
    sender.disk.directory.rename(world.where / f"{sender.name}-aside-{world.universe.steps}")
    restore_backup(copy.where, sender.disk.directory)
    remotes = world.remotes
    owned = {name for name in remotes.names if _owner(name, world.sender_names) == sender.name}
    remotes.may_be_passed(copy.kept)
    remotes.may_be_twice.update(number for _, number in copy.kept.edus)
    passed = remotes.may_be_twice_above(copy.kept.position, owned)
    for name, number in passed:
        remotes.overtaken[name].add(number)
    world.saw("outbox put back", "EDUs wait in it" if copy.kept.edus else "nothing waits in it")
    sender.was_put_back = True
    sender.supervised = True
    world.universe.later(1.0, sender._boot_if_wanted)
