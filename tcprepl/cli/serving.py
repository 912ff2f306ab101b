"""Run a composition root as a process of its own: ready, reloaded by SIGHUP, ended by Ctrl-C."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

from tcprepl.app.answering import Answering, Outcome
from tcprepl.app.lifecycle import Process, run
from tcprepl.app.memory import give_back_what_is_free
from tcprepl.app.reload import Reloadable, Reloader
from tcprepl.background import run_in_background
from tcprepl.cli import logs
from tcprepl.cli.output import say
from tcprepl.cli.running import run_until_done
from tcprepl.clocks import Reactor
from tcprepl.config import Loaded

#: Objects after whose making the youngest are looked at for garbage.
_YOUNG_OBJECTS: Final = 20_000


class Root(Process, Reloadable, Protocol):
    """A composition root."""


P = TypeVar("P", bound=Root)


def run_process(
    make: Callable[[Any], P],
    name: str,
    welcome: Callable[[P], str],
    load: Callable[[], Loaded] | None,
) -> int:
    """Run a composition root as this process, reloaded by SIGHUP, and return its exit code.

    Args:
        make: Makes it, given the reactor.
        name: What it is, for the log.
        welcome: Returns what a person is told when it is ready.
        load: Reads its configuration file again; None if it has none.

    Raises:
        Exception: It could not start, or failed.
    """
    reloaders: list[Reloader] = []

    # Rows are looked at by the hundred, and are gone a moment later: nothing for a collector.
    gc.set_threshold(_YOUNG_OBJECTS, *gc.get_threshold()[1:])
    give_back_what_is_free()

    async def main(reactor: Reactor) -> int:
        process = make(reactor)
        answering: list[Answering] = []

        def tell(outcome: Outcome) -> None:
            for one in answering:
                one.tell(outcome)

        reloader = Reloader(process, load, logs.configure, tell)
        reloaders.append(reloader)

        def ready() -> None:
            answering.append(Answering(process.directory))
            reloader.ready()
            # What is there by now stays: whole collections, which hold up everybody, pass it over.
            gc.collect()
            gc.freeze()

        try:
            return await run(reactor, process, name, lambda: say(welcome(process)), ready)
        finally:
            gc.unfreeze()
            for one in answering:
                one.close()

    def hang_up() -> None:
        for reloader in reloaders:
            run_in_background(reloader.hang_up)

    return run_until_done(main, on_hangup=hang_up)
