"""Reloading: what is taken up, what is named, what changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from tcprepl.app.answering import Outcome
from tcprepl.app.reload import Reloader, all_of, changed, is_in, merged, shown
from tcprepl.config import BadConfig, Loaded, build, revalidated
from tcprepl.errors import ConfigError
from tcprepl.settings import Config


def config(**raw: Any) -> Config:
    return build(raw, "test").config


class Process:
    """Takes up the level of the log, the token, and who may connect."""

    reloads = frozenset({"log", "http.token", "http.hosts"})

    def __init__(self, settings: Config) -> None:
        self.config = settings
        self.taken: list[Config] = []
        self.fault: str | None = None

    def reload(self, settings: Config) -> Callable[[], None]:
        if self.fault is not None:
            raise ConfigError(self.fault)
        return lambda: self.taken.append(settings)


def hang_up(process: Process, new: dict[str, Any] | None, levels: list[Any] | None = None) -> Any:
    """Reload *process* with other settings, and return what was logged."""
    levels = [] if levels is None else levels
    reloader = Reloader(
        process,
        None if new is None else lambda: build(new, "x.yaml"),
        lambda *given: levels.append(given),
    )
    reloader.ready()
    with structlog.testing.capture_logs() as logs:
        reloader.hang_up()
    return logs


def test_who_asked_is_told() -> None:
    process, told = Process(config()), []
    new: dict[str, Any] = {"http": {"token": "new", "listen": "127.0.0.1:1"}}
    reloader = Reloader(process, lambda: build(new, "x"), lambda *_: None, told.append)
    reloader.ready()
    reloader.hang_up()
    new["server_nam"] = new["htp"] = "x"
    reloader.hang_up()
    good, bad = told
    assert good == Outcome(("http.token",), ("http.listen",))
    assert len(bad.faults) == 2
    without = Reloader(process, None, lambda *_: None, told.append)
    without.ready()
    without.hang_up()
    assert told[-1].text.startswith("started without --config")


def of(logs: Any, event: str, *keys: str) -> list[Any]:
    return [
        tuple(entry[key] for key in keys) for entry in logs if entry["event"] == f"reload.{event}"
    ]


def test_what_has_changed_is_said_and_taken_up() -> None:
    process, levels = Process(config(http={"token": "old"})), []
    new = {"http": {"token": "new", "listen": "127.0.0.1:1"}, "log": {"level": "debug"}}
    logs = hang_up(process, new, levels)
    assert sorted(of(logs, "changed", "setting", "was", "now")) == [
        ("http.token", "a value that is not shown", "a value that is not shown"),
        ("log.level", "info", "debug"),
    ]
    assert of(logs, "needs_restart", "setting") == [("http.listen",)]
    assert of(logs, "done", "changed", "needs_restart") == [(2, 1)]
    assert levels == [("debug", "auto")]
    (taken,) = process.taken
    assert taken is process.config
    assert taken.log.level == "debug"
    assert taken.http.token is not None
    assert taken.http.token.get_secret_value() == "new"
    # What could not be taken up is what it was, and is named again the next time.
    assert taken.http.listen == config().http.listen
    assert of(hang_up(process, new), "needs_restart", "setting") == [("http.listen",)]


def test_a_level_that_shows_less_does_not_hide_what_changed() -> None:
    order: list[str] = []
    process = Process(config())
    reloader = Reloader(
        process,
        lambda: build({"log": {"level": "error"}}, "x"),
        lambda level, _: order.append(level),
    )
    reloader.ready()
    with structlog.testing.capture_logs(processors=[lambda *a: order.append("line") or a[2]]):
        reloader.hang_up()
    assert order == ["line", "line", "error"]
    order.clear()
    reloader = Reloader(process, lambda: build({}, "x"), lambda level, _: order.append(level))
    reloader.ready()
    with structlog.testing.capture_logs(processors=[lambda *a: order.append("line") or a[2]]):
        reloader.hang_up()
    assert order == ["info", "line", "line"]


@pytest.mark.parametrize("level", ["info", "debug", "error"])
def test_the_end_is_told_when_all_is_in_use(level: str) -> None:
    """Who waits for `reload.done` meets the new certificates, and has read that they are."""
    process, in_use = Process(config()), []
    process.reload = lambda settings: lambda: in_use.append(settings)  # type: ignore[method-assign]
    reloader = Reloader(process, lambda: build({"log": {"level": level}}, "x"), lambda *_: None)
    reloader.ready()

    def line(_logger: Any, _method: str, entry: Any) -> Any:
        return {**entry, "in_use": list(in_use), "holds": process.config}

    with structlog.testing.capture_logs(processors=[line]) as logs:
        reloader.hang_up()
    done = logs[-1]
    assert done["event"] == "reload.done"
    assert done["in_use"] == [done["holds"]]
    assert done["holds"].log.level == level


def test_faults_change_nothing_and_all_are_told() -> None:
    process = Process(config())
    logs = hang_up(process, {"server_nam": "x", "log": {"level": "loud"}})
    assert len(of(logs, "fault", "fault")) == 2
    assert len(of(logs, "refused", "text")) == 1
    process.fault = "chain.pem: cannot be read"
    logs = hang_up(process, {"log": {"level": "debug"}})
    assert of(logs, "fault", "fault") == [("chain.pem: cannot be read",)]
    assert of(logs, "changed", "setting") == []
    assert process.taken == []
    assert process.config == config()


def test_a_guard_is_not_taken_from_what_goes_on_listening() -> None:
    """The new file listens on loopback without a token; but the old listener stays."""
    old = config(http={"listen": "0.0.0.0:9093", "token": "guard"})
    process = Process(old)
    logs = hang_up(process, {"http": {"listen": "127.0.0.1:9093"}})
    ((fault,),) = of(logs, "fault", "fault")
    assert "http.listen: found '0.0.0.0:9093'; other machines can reach it" in fault
    assert process.config is old
    assert process.taken == []


def test_without_a_file_only_other_files_are_read_again() -> None:
    process = Process(config())
    logs = hang_up(process, None)
    assert process.taken == [process.config]
    ((text,),) = of(logs, "done", "text")
    assert "without --config" in text


def test_a_hang_up_before_it_is_ready_is_not_forgotten() -> None:
    process = Process(config())
    reloader = Reloader(process, lambda: Loaded(config(log={"level": "debug"})), lambda *_: None)
    reloader.hang_up()
    assert process.taken == []
    reloader.ready()
    assert process.config.log.level == "debug"


def test_spelling_is_told_again() -> None:
    logs = hang_up(Process(config()), {"worker_name": "x"})
    assert any(entry["event"] == "config.spelling" for entry in logs)


def test_names_of_settings() -> None:
    assert is_in("log.level", {"log"})
    assert not is_in("logs.level", {"log"})
    assert not is_in("http.tls", {"http.tls.certificate"})
    tls = {"certificate": "c", "private_key": "k"}
    old, new = config(), config(http={"tls": tls}, server_name="x")
    assert sorted(changed(old, new)) == ["http.tls", "server_name"]
    other = config(http={"tls": {**tls, "private_key": "other"}}, server_name="x")
    assert list(changed(new, other)) == ["http.tls.private_key"]
    assert revalidated(merged(new, other, ["http.tls.private_key"])) == other
    assert revalidated(merged(new, other, [])) == new
    assert shown(config(http={"client_tokens": [{"token": "hush"}]}), "http.client_tokens") == (
        "a value that is not shown"
    )


def test_everything_can_be_put_together_anew(tmp_path: Path) -> None:
    """Whatever is in a configuration comes through unharmed."""
    raw = {
        "server_name": "x",
        "replication": {"listen": ["127.0.0.1:1", "unix:/x"], "dialect": "1.13"},
        "http": {"client_tokens": [{"token": "t", "user_id": "@a:x"}], "max_body_bytes": "1M"},
        "streams": {"retention": {"age": "1h"}, "retention_of": {"typing": {"rows": 3}},
                    "extra": ["a", {"name": "b", "durable": False}]},
        "federation": {"resolve": {"b.example": "127.0.0.1:1"}, "senders": ["a"]},
        "redis": {"url": "redis://:p@h:1"},
        "instances": {"*": "http://h:1"},
    }  # fmt: skip
    full = build(raw, "test").config
    assert revalidated(merged(full, config(), [])) == full


def test_all_faults_of_several() -> None:
    def bad(text: str) -> Callable[[], None]:
        def fail() -> None:
            raise ConfigError(text)

        return fail

    assert all_of(lambda: 1, lambda: 2) == [1, 2]
    with pytest.raises(BadConfig) as caught:
        all_of(bad("a"), lambda: 2, bad("b"))
    assert caught.value.faults == ["a", "b"]


def test_faults_of_several_within_several_stand_alone() -> None:
    """Each is one line: a text of several would be shown with its line ends escaped."""

    def inner() -> None:
        raise BadConfig("the settings", ["a", "b"])

    with pytest.raises(BadConfig) as caught:
        all_of(inner)
    assert caught.value.faults == ["a", "b"]
