"""README.md and the pages of ``tcprepl/docs`` against the code.

Commands, options, configuration, metrics, links, targets.
"""

from __future__ import annotations

import importlib
import re
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any, get_args, get_origin

import click
import pytest
import yaml
from pydantic import BaseModel

from tcprepl import metrics
from tcprepl.cli import COMMANDS
from tcprepl.cli.help import SUMMARIES
from tcprepl.config import build
from tcprepl.settings import Config
from tests.pages import PAGES, PATHS, ROOT, TEXT, anchors, blocks, section


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
    text = section("commands", f"tcprepl {name}")
    assert f"$ tcprepl {name} " in text or f"$ tcprepl {name}\n" in text
    command = importlib.import_module(COMMANDS[name][0]).command
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))
    assert mentioned <= options_of(command)


def test_no_command_is_shown_that_there_is_not() -> None:
    """What one is told to type exists."""
    typed = set(re.findall(r"(?:\$ |/)tcprepl ([a-z][a-z-]*)", TEXT))
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
    text, *examples = blocks("configuration", "yaml")
    examples += [text for name in PAGES for text in blocks(name, "yaml")]
    settings = yaml.safe_load(text)
    loaded = build(settings, "the example")
    assert loaded.warnings == ()
    assert loaded.config.server_name == "example.com"
    missing = [path for path in sections(Config) if not is_shown(settings, path)]
    assert missing == []
    for example in examples:
        assert build(yaml.safe_load(example), "the example").warnings == ()


def test_defaults_in_the_configuration_are_true() -> None:
    """Keys that are shown with their default have it."""
    (text,) = blocks("configuration", "yaml")
    shown = build(yaml.safe_load(text), "the example").config
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
    named = set(re.findall(r"`((?:synapse|tcprepl)_[a-z_]{8,})`", TEXT))
    assert len(named) > 5
    missing = {
        name
        for name in named
        if name not in exposed and f"{name}_total" not in exposed and name not in OTHER_NAMES
    }
    assert missing == set()


def told_of_metrics() -> dict[str, str]:
    """Return the help text of each metric of ours that is in the table, by its exposed name."""
    importlib.import_module("tcprepl.app.server")
    helps = re.findall(r"^# HELP (\S+) (.+)$", metrics.render().decode(), re.MULTILINE)
    cells = re.findall(r"^\| (`.+?) \|", section("operation", "Metrics"), re.MULTILINE)
    named = re.findall(r"`([a-z_]+)`", " ".join(cells))
    assert len(named) > 30
    assert set(named) - {name for name, _ in helps} == set(), "not the names to ask for"
    return {name: text for name, text in helps if name in named and name.startswith("tcprepl_")}


@pytest.mark.parametrize(("name", "text"), told_of_metrics().items())
def test_the_help_of_a_metric_says_what_to_think_of_it(name: str, text: str) -> None:
    """Not only what is counted: also what is good, what is bad, or what to do."""
    what, _, more = re.sub("; |: |[.] ", "\0", text).partition("\0")
    assert len(what) > 10, name
    assert len(more) > 10, name


#: Words of the same form that are settings of Synapse.
OTHER_NAMES: set[str] = set()


@pytest.mark.parametrize("name", list(PAGES))
def test_links_lead_somewhere(name: str) -> None:
    """Files and sections that a page points to are there."""
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[name]):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        path = (PATHS[name].parent / file).resolve() if file else PATHS[name]
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path.stem), target


def test_every_page_is_told_of() -> None:
    """README leads to each, and so does ``tcprepl help``."""
    assert set(re.findall(r"\(tcprepl/docs/([a-z]+)\.md\) \|", PAGES["README"])) == set(
        SUMMARIES
    ) - {"protocol"}
    assert set(PAGES) - {"README"} == set(SUMMARIES) - {"protocol"}


def test_make_targets_exist() -> None:
    """Targets that are named are there, and make help lists them."""
    listed = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    targets = set(re.findall(r"^  ([a-z-]+)", listed, re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)`", TEXT)) <= targets
    assert set(re.findall(r"\bmake ([a-z-]+)$", (ROOT / ".ci/run").read_text(), re.M)) <= targets
