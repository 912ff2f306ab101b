"""What the driver does to a world, step after step, by chance."""

from __future__ import annotations

import heapq
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import count

from tests.harness import pause
from tests.torture import shim as shims
from tests.torture.actors import Actor
from tests.torture.world import World

#: How far wall clocks are set.
CLOCKS_S = (-3_600.0, -5.0, 0.0, 7.0, 3_600.0, 30 * 86_400.0)
#: How it is counted that something came of what was done; other things cannot fail to.
MET = {
    "kill": "kills",
    "kill during a start": "killed in a start",
    "kill in a write": "killed in a write",
    "kill behind a sync": "killed in the moment behind a sync",
    "kill in a checkpoint": "killed in a checkpoint",
    "kill in a trim": "killed in a trim",
    "backup": "killed in backup",
    "restore": "killed in restore",
    "migrate": "killed in migrate",
    "damage": "bits flipped",
    "pause": "killed when a destination was paused",
    "purge": "EDUs purged",
}
#: How often something is done of which nothing came yet, before anything else.
UNMET = 0.2
#: How long a process has to get into a checkpoint or a trim before the next thing is done to it.
MET_S = 2.0


class Tormentor:
    """Lets one fault follow another until its time is over.

    Args:
        world: What suffers.
        before: How often what was met in the rounds before.
    """

    def __init__(self, world: World, before: Mapping[str, int]) -> None:
        self._world = world
        self._before = before
        self._chance = random.Random(world.seed ^ 0x7031)
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._kinds: list[tuple[float, str, Callable[[], None]]] = [
            (10.0, "kill", self._kill),
            (4.0, "kill during a start", self._kill_starting),
            (4.0, "kill in a write", self._kill_in_a_write),
            (3.0, "kill behind a sync", self._kill_behind_a_sync),
            (2.0, "kill in a checkpoint", lambda: self._kill_at(shims.CHECKPOINT)),
            (2.0, "kill in a trim", lambda: self._kill_at(shims.TRIM)),
            (2.0, "freeze", self._freeze),
            (1.0, "end", self._end),
            (2.5, "cut wire", self._cut),
            (1.5, "frozen wire", self._freeze_wire),
            (1.0, "dripping wire", self._drip),
            (1.5, "full disk", self._full),
            (1.0, "failing fsync", self._no_sync),
            (0.7, "failing checkpoints", lambda: self._fail_at(shims.CHECKPOINT)),
            (0.7, "failing trims", lambda: self._fail_at(shims.TRIM)),
            (1.0, "short writes", self._short),
            (1.0, "failing reads", self._no_read),
            (1.0, "no descriptors", self._starve),
            (1.0, "wall clock", self._clock),
        ]
        self._kinds += [(0.8, name, function) for name, function in world.operations()]

    def run(self, seconds: float) -> None:
        """Torture for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pause(self._chance.uniform(0.1, 1.2))
            self._heal_due()
            self._world.tend()
            kinds = self._unmet() if self._chance.random() < UNMET else []
            kinds = kinds or self._kinds
            weights = [weight for weight, _, _ in kinds]
            _, name, function = self._chance.choices(kinds, weights)[0]
            self._world.tally[name] += 1
            function()
            self._note_descriptors()
        while self._later:
            heapq.heappop(self._later)[2]()

    def _unmet(self) -> list[tuple[float, str, Callable[[], None]]]:
        """Return what nothing has come of yet."""
        met = Counter(self._before) + self._world.tally
        return [kind for kind in self._kinds if not met[MET.get(kind[1], kind[1])]]

    # -- what heals later ----------------------------------------------------------------------

    def _in(self, seconds: float, heal: Callable[[], None]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._order), heal))

    def _heal_due(self) -> None:
        while self._later and self._later[0][0] <= time.monotonic():
            heapq.heappop(self._later)[2]()

    def _note_descriptors(self) -> None:
        for actor in self._world.actors.values():
            if actor.alive and actor.descriptors is None:
                actor.descriptors = actor.open_files()

    def _one(self, *, shim: bool = False) -> Actor:
        actors = [a for a in self._world.actors.values() if not shim or a.shim is not None]
        return self._chance.choice(actors)

    # -- faults --------------------------------------------------------------------------------

    def _kill(self) -> None:
        actors = [self._one()]
        if self._chance.random() < 0.2:
            actors.append(self._one())
        for actor in actors:
            actor.kill()
        for actor in actors:
            if not actor.alive:
                actor.start()

    def _kill_starting(self) -> None:
        actor = self._one()
        actor.kill()
        actor.start()
        for _ in range(self._chance.randint(1, 3)):
            if actor.shim is not None and self._chance.random() < 0.5:
                actor.shim.kill_in(self._chance.randint(1, 12))
            pause(self._chance.uniform(0.05, 1.0))
            kills = self._world.tally["kills"]
            actor.kill()
            self._world.tally["killed in a start"] += self._world.tally["kills"] - kills
            actor.start()

    def _kill_in_a_write(self) -> None:
        actor = self._one(shim=True)
        assert actor.shim is not None
        if self._chance.random() < 0.4:
            actor.kill()  # in what it writes when it starts
            actor.start()
        actor.shim.kill_in(self._chance.randint(1, 40))

    def _kill_behind_a_sync(self) -> None:
        shim = self._one(shim=True).shim
        assert shim is not None
        shim.kill_behind(self._chance.randint(1, 10))

    def _kill_at(self, place: int) -> None:
        shim = self._who_meets(place)
        shim.kill_at(place, self._chance.randint(1, 12 if place == shims.CHECKPOINT else 4))
        end = time.monotonic() + MET_S  # else it dies of something else before
        while not shim.killed and time.monotonic() < end:
            pause(0.05)

    def _fail_at(self, place: int) -> None:
        shim = self._who_meets(place)
        shim.fail_at(place, True)
        self._in(self._chance.uniform(0.5, 4.0), lambda: shim.fail_at(place, False))

    def _who_meets(self, place: int) -> shims.Shim:
        """Return the shim of a process that was there before; the first, as long as none was."""
        every = [actor.shim for actor in self._world.actors.values() if actor.shim is not None]
        return self._chance.choice([shim for shim in every if shim.met(place)] or every[:1])

    def _freeze(self) -> None:
        actor = self._one()
        actor.freeze()
        self._in(self._chance.uniform(0.1, 4.0), actor.thaw)

    def _end(self) -> None:
        actor = self._one()
        if actor.shim is None or "worker" in actor.name:
            return
        actor.end()
        actor.start()

    def _cut(self) -> None:
        self._chance.choice(self._world.wires.all).cut(reset=self._chance.random() < 0.5)

    def _freeze_wire(self) -> None:
        wire = self._chance.choice(self._world.wires.all)
        wire.freeze(True)
        self._in(self._chance.uniform(0.2, 6.0), lambda: wire.freeze(False))

    def _drip(self) -> None:
        wire = self._chance.choice(self._world.wires.all)
        wire.drip(True)
        self._in(self._chance.uniform(0.5, 5.0), lambda: wire.drip(False))

    def _full(self) -> None:
        shim = self._one(shim=True).shim
        assert shim is not None
        shim.full(True)
        self._in(self._chance.uniform(0.1, 3.0), lambda: shim.full(False))

    def _no_sync(self) -> None:
        shim = self._one(shim=True).shim
        assert shim is not None
        shim.no_sync(True)
        self._in(self._chance.uniform(0.1, 2.0), lambda: shim.no_sync(False))

    def _short(self) -> None:
        shim = self._one(shim=True).shim
        assert shim is not None
        shim.shorter(True)
        self._in(self._chance.uniform(0.1, 3.0), lambda: shim.shorter(False))

    def _no_read(self) -> None:
        shim = self._one(shim=True).shim
        assert shim is not None
        shim.no_read(True)
        self._in(self._chance.uniform(0.1, 1.5), lambda: shim.no_read(False))

    def _starve(self) -> None:
        actor = self._one()
        actor.starve(self._chance.randint(0, 3))
        self._in(self._chance.uniform(0.2, 3.0), actor.feed)

    def _clock(self) -> None:
        shim = self._one(shim=True).shim
        assert shim is not None
        shim.wall_clock(self._chance.choice(CLOCKS_S))
