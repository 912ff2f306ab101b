"""README.md against the code: commands, options, configuration, metrics, links, targets."""

from __future__ import annotations

import importlib
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import click
import pytest
import yaml
from pydantic import BaseModel

from tcprepl import metrics
from tcprepl.cli import COMMANDS
from tcprepl.config import Config, build

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    """Return the fenced blocks of one kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    """Return the text under a heading."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", README, re.M | re.S)
    assert found, f"README.md has no section {title!r}"
    return found[1]


def options_of(command: click.Command) -> set[str]:
    """Return every option of a command and of the commands below it."""
    found = {option for param in command.params for option in param.opts if option[:2] == "--"}
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            found |= options_of(inner)
    return found


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_is_shown_in_use(name: str) -> None:
    """A sentence and an example for each, and no option that it does not have."""
    text = section(f"tcprepl {name}")
    assert f"$ tcprepl {name} " in text or f"$ tcprepl {name}\n" in text
    command = importlib.import_module(COMMANDS[name][0]).command
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))
    assert mentioned <= options_of(command)


def test_no_command_is_shown_that_there_is_not() -> None:
    """What README tells to type exists."""
    typed = set(re.findall(r"(?:\$ |/)tcprepl ([a-z][a-z-]*)", README))
    assert typed <= COMMANDS.keys()


def sections(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted path of every key."""
    for name, field in model.model_fields.items():
        kinds = (field.annotation, *get_args(field.annotation))
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if get_origin(field.annotation) is Mapping:
            inner = []  # its keys are the user's
        yield prefix + name
        for kind in inner:
            yield from sections(kind, f"{prefix}{name}.")


def is_shown(settings: Any, path: str) -> bool:
    """Return whether a dotted path is in the settings; a section may be written as null."""
    for part in path.split("."):
        if isinstance(settings, list):
            settings = next(item for item in settings if isinstance(item, dict))
        if settings is None:
            return True
        if part not in settings:
            return False
        settings = settings[part]
    return True


def test_configuration_shows_every_key_and_is_good() -> None:
    """The example is read without faults, and nothing can be set that it does not show."""
    *examples, text = blocks("yaml")
    settings = yaml.safe_load(text)
    loaded = build(settings, "README.md")
    assert loaded.warnings == ()
    assert loaded.config.server_name == "example.com"
    missing = [path for path in sections(Config) if not is_shown(settings, path)]
    assert missing == []
    for example in examples:
        assert build(yaml.safe_load(example), "README.md").warnings == ()


def test_defaults_in_the_configuration_are_true() -> None:
    """Keys that README gives their default for have it."""
    text = blocks("yaml")[-1]
    shown = build(yaml.safe_load(text), "README.md").config
    default = Config()
    assert shown.instance == default.instance
    assert shown.replication.listen == default.replication.listen
    assert shown.replication.max_connections == default.replication.max_connections
    assert shown.http.listen == default.http.listen
    assert shown.http.max_body_bytes == default.http.max_body_bytes
    assert shown.log == default.log


def test_metrics_exist() -> None:
    """Every metric that is named is exposed."""
    importlib.import_module("tcprepl.app.server")
    exposed = set(re.findall(r"^# HELP (\S+)", metrics.render().decode(), re.MULTILINE))
    named = set(re.findall(r"`((?:synapse|tcprepl)_[a-z_]{8,})`", README))
    assert len(named) > 5
    missing = {
        name
        for name in named
        if name not in exposed and f"{name}_total" not in exposed and name not in OTHER_NAMES
    }
    assert missing == set()


#: Words of the same form that are settings of Synapse.
OTHER_NAMES: set[str] = set()


def test_links_lead_somewhere() -> None:
    """Files and sections that README points to are there."""
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("https://"):
            continue
        if target.startswith("#"):
            titles = {
                re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")
                for title in re.findall(r"^#+ (.+)$", README, re.MULTILINE)
            }
            assert target[1:] in titles
        else:
            assert (ROOT / target).exists(), target


def test_make_targets_exist() -> None:
    """Targets that are named are there, and make help lists them."""
    listed = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    targets = set(re.findall(r"^  ([a-z-]+)", listed, re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)`", README)) <= targets
    assert set(re.findall(r"\bmake ([a-z-]+)$", (ROOT / ".ci/run").read_text(), re.M)) <= targets
