"""The files that are shipped: complete, and such that the commands in them can be run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

import tcprepl
from tcprepl import cli
from tcprepl.files import KINDS, files_of
from tests.unit.files.test_dashboard import NAME, names

WHERE = Path("/opt/tcprepl/bin/tcprepl")


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_its_files(kind: str) -> None:
    found = files_of(kind, WHERE)
    assert tuple(found) == KINDS[kind].names
    assert all(text.endswith("\n") and "@TCPREPL@" not in text for text in found.values())


@pytest.mark.parametrize("kind", ["tmpfiles", "sysusers"])
def test_a_file_goes_where_it_is_said_to_go(kind: str) -> None:
    (name,) = KINDS[kind].names
    assert KINDS[kind].about.endswith(f"/etc/{kind}.d/{name}")


def understood(arguments: list[str]) -> None:
    """Parse a command line as the command would."""
    root = click.Context(cli.cli)
    command = cli.cli.get_command(root, arguments[0])
    assert command is not None
    command.make_context(arguments[0], arguments[1:], parent=root)


def test_units_start_what_there_is() -> None:
    """Each has a watchdog and says that it is ready, and its options are real."""
    units = {n: t for n, t in files_of("systemd", WHERE).items() if n.endswith(".service")}
    for text in units.values():
        (line,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
        words = shlex.split(line)
        assert words[0] == str(WHERE)
        understood(words[1:])
        assert "\nType=notify\n" in text
        assert "\nWatchdogSec=" in text
        (state,) = re.findall(r"^StateDirectory=(.*)$", text, re.MULTILINE)
        (line,) = re.findall(r"^ExecReload=(.*)$", text, re.MULTILINE)
        words = shlex.split(line)
        assert words == [str(WHERE), "reload", "--data", f"/var/lib/{state}"]
        understood(words[1:])
        made = files_of("tmpfiles", WHERE)["tcprepl.conf"]
        assert f"d /var/lib/{state} " in made


def test_directories_of_sockets_outlive_their_units() -> None:
    """A container that has one mounted has that one for good: a new one it never sees."""
    units = {n: t for n, t in files_of("systemd", WHERE).items() if n.endswith(".service")}
    for text in units.values():
        assert "\nRuntimeDirectory=" in text
        assert "\nRuntimeDirectoryPreserve=yes\n" in text
    # where Synapse's containers are pointed: there before the bus is, for any user to enter
    made = files_of("tmpfiles", WHERE)["tcprepl.conf"]
    assert re.search(r"^d /run/tcprepl-bus +0755 tcprepl tcprepl -$", made, re.MULTILINE)


def lines_of_comments(text: str) -> list[str]:
    """Return what is said beside the commands."""
    return [line for line in text.splitlines() if line.startswith("#")]


def options_of(group: str, name: str) -> list[click.Parameter]:
    """Return the options of a command in a group."""
    found = cli.cli.get_command(click.Context(cli.cli), group)
    assert isinstance(found, click.Group)
    command = found.get_command(click.Context(found), name)
    assert command is not None
    return command.params


def test_the_image_is_run_by_nobody_of_importance() -> None:
    """Not root, one volume, a check of health, signals to the process itself."""
    text = files_of("container", WHERE)["Containerfile"].replace("\\\n", "")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    last = lines[max(n for n, line in enumerate(lines) if line.startswith("FROM ")) :]
    words = [line.partition(" ") for line in last]
    assert all(":" in rest for word, _, rest in words if word == "FROM")
    given = {word: rest for word, _, rest in words}
    assert given["USER"] not in ("root", "0")
    assert [rest for word, _, rest in words if word == "VOLUME"] == ["/data"]
    assert yaml.safe_load(given["ENTRYPOINT"]) == ["tcprepl"]
    understood(yaml.safe_load(given["CMD"]))
    check = yaml.safe_load(given["HEALTHCHECK"].partition("CMD ")[2])
    assert check == ["tcprepl", "check", "health"]
    assert "ADD" not in given
    # podman leaves the check out of an image in its own format
    told = [line for line in lines_of_comments(text) if "podman build" in line]
    assert [
        line for line in (*told, KINDS["container"].about) if "--format docker" not in line
    ] == []
    assert told
    (asked,) = (found.envvar for found in options_of("check", "health") if "--to" in found.opts)
    assert f"-e {asked}=" in text


def test_alerts_name_metrics_that_there_are_and_say_what_to_do() -> None:
    (group,) = yaml.safe_load(files_of("alerts", WHERE)["tcprepl.rules.yml"])["groups"]
    for rule in group["rules"]:
        asked = set(NAME.findall(rule["expr"]))
        assert asked
        assert asked <= names(), rule["alert"]
        assert rule["annotations"]["summary"]
        assert len(rule["annotations"]["runbook"]) > 40


def test_what_alerts_tell_to_look_for_is_logged() -> None:
    """The name of each event in them stands in the code."""
    text = files_of("alerts", WHERE)["tcprepl.rules.yml"]
    named = set(re.findall(r"\b(?:replication|background|streams|reload)(?:\.[a-z_]+)+\b", text))
    named = {name for name in named if not name.startswith("streams.retention")}
    package = Path(tcprepl.__file__).parent
    code = "".join(path.read_text(encoding="utf-8") for path in package.rglob("*.py"))
    assert named
    assert {name for name in named if f'"{name}"' not in code} == set()
