"""The configuration: YAML in, typed and validated settings out.

`load` reads a file and reports *all* its faults at once, each with the path of the key, the
value found and what was expected. Synapse's names are understood where they mean the same
thing; a warning shows our spelling. What there is to set is in `tcprepl.settings`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, get_args

import yaml
from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from tcprepl.addresses import Address
from tcprepl.errors import ConfigError, did_you_mean
from tcprepl.protocol.display import counted
from tcprepl.secret_files import read_secret
from tcprepl.settings import Config
from tcprepl.synapse_names import excerpt, put, translate_synapse

#: What finds faults in settings that may not be valid.
Look: TypeAlias = Callable[[Mapping[str, Any]], list[str]]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration, and what should be written differently in its file."""

    config: Config
    warnings: tuple[str, ...] = ()


class BadConfig(ConfigError):
    """A configuration that is not valid.

    Attributes:
        faults: One line each: key path, value found, expectation.
    """

    def __init__(self, source: str, faults: list[str]) -> None:
        count = counted(len(faults), "fault")
        super().__init__("\n  ".join([f"{source}: {count}", *faults]))
        self.faults = faults


def load(
    path: Path | str, overrides: Mapping[str, Any] | None = None, look: Look | None = None
) -> Loaded:
    """Read a file; see `build` for *overrides* and *look*.

    Raises:
        BadConfig: the file cannot be read, is not YAML, or has faults; all are named.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise BadConfig(str(path), [f"cannot be read: {reason}"]) from None
    return parse(text, str(path), overrides, look)


def loader(
    path: Path | None, overrides: Mapping[str, Any], look: Look | None = None
) -> Callable[[], Loaded]:
    """Return what reads the settings of a process, again and again.

    Args:
        path: The file; None if there are only *overrides*.
        overrides: What its command line says; see `build`.
        look: What else is a fault; see `build`.
    """
    if path is None:
        return lambda: build({}, "command line", overrides, look=look)
    return lambda: load(path, overrides, look)


def parse(
    text: str,
    source: str,
    overrides: Mapping[str, Any] | None = None,
    look: Look | None = None,
) -> Loaded:
    """Validate YAML text; *source* names it in errors; see `build` for *overrides* and *look*.

    Raises:
        BadConfig: it is not YAML, or has faults; all are named.
    """
    twice: list[str] = []
    try:
        loader = _UniqueKeys(text)
        try:
            raw = loader.get_single_data()
        finally:
            loader.dispose()
        twice = [fault for _, fault in sorted(loader.faults.items())]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise BadConfig(source, [f"{place}not YAML: {error.problem}"]) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # numbers and times that are none, or what is nested too deeply
        raise BadConfig(source, [f"not YAML: {' '.join(str(error).split())}"]) from None
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise BadConfig(source, [f"found {_shown(raw)}; expected a section with keys"])
    return build(raw, source, overrides, faults=twice, look=look)


class _UniqueKeys(yaml.SafeLoader):
    """Reads YAML; a key that stands twice in a section is a fault, not a silent last word.

    Attributes:
        faults: Where keys stand twice: the line and the column, and the fault in words.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.faults: dict[tuple[int, int], str] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a section (yaml calls this)."""
        first: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if key.value in first:
                    before = f"it is on line {first[key.value]} already"
                    fault = f"line {line}: {key.value} stands twice; {before}"
                    self.faults[line, key.start_mark.column] = fault
                first.setdefault(key.value, line)
        return super().construct_mapping(node, deep)


def build(
    raw: Mapping[str, Any],
    source: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    faults: Sequence[str] = (),
    look: Look | None = None,
) -> Loaded:
    """Validate settings that are already in memory.

    Args:
        raw: The settings, as YAML gives them.
        source: What to call them in errors.
        overrides: Dotted key -> value, stronger than *raw*; None values do not count.
        faults: Faults that are known already, to be told with the others.
        look: Called with the settings before they are validated; returns more faults.

    Raises:
        BadConfig: there are faults; all are named.
    """
    settings, warnings, more = translate_synapse(raw)
    faults = [*faults, *more]
    for path, value in (overrides or {}).items():
        if value is not None:
            put(settings, path, value)
    faults += _read_secrets(settings)
    if look is not None:
        faults += look(settings)
    try:
        config = Config.model_validate(settings)
    except ValidationError as error:
        faults += [_fault(detail) for detail in error.errors(include_url=False)]
        raise BadConfig(source, faults) from None
    if faults:
        raise BadConfig(source, faults)
    return Loaded(config, tuple(warnings))


def revalidated(settings: Mapping[str, Any]) -> Config:
    """Return settings that were validated before, put together in another way.

    Raises:
        BadConfig: They do not go together; every fault is named.
    """
    try:
        return Config.model_validate(settings)
    except ValidationError as error:
        faults = [_fault(detail) for detail in error.errors(include_url=False)]
        raise BadConfig("the settings as they would be", faults) from None


def _read_secrets(settings: dict[str, Any]) -> list[str]:
    """Put in place what files like ``token_file`` hold, and return the faults."""
    faults: list[str] = []

    def read(section: Any, key: str, path: str) -> Any:
        if not isinstance(section, Mapping) or section.get(f"{key}_file") is None:
            return section
        found = dict(section)
        if found.get(key) is not None:
            faults.append(f"{path}_file: {path} is set as well; expected one of the two")
            return found
        try:
            found[key] = read_secret(Path(str(found[f"{key}_file"])))
        except ConfigError as error:
            faults.append(f"{path}_file: {error}")
            found[key] = f"unknown-{path}"  # one fault is enough
        return found

    http = settings.get("http")
    if isinstance(http, Mapping):
        http = read(http, "token", "http.token")
        http = dict(read(http, "replication_secret", "http.replication_secret"))
        if isinstance(http.get("client_tokens"), list):
            http["client_tokens"] = [
                read(section, "token", f"http.client_tokens.{number}.token")
                for number, section in enumerate(http["client_tokens"])
            ]
        settings["http"] = http
    replication = settings.get("replication")
    if isinstance(replication, Mapping) and isinstance(replication.get("tokens"), list):
        tokens = [
            read(section, "token", f"replication.tokens.{number}.token")
            for number, section in enumerate(replication["tokens"])
        ]
        settings["replication"] = {**replication, "tokens": tokens}
    return faults


# Faults, in plain words.


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _expectation(loc: tuple[int | str, ...]) -> tuple[str, list[str], bool]:
    """Return (what is expected at *loc*, the keys known beside it, whether it is a secret)."""
    model: type[BaseModel] | None = Config
    expected, beside, secret = "a section with keys", list(Config.model_fields), False
    for part in loc:
        field = model.model_fields.get(str(part)) if model is not None else None
        if model is not None:
            beside = list(model.model_fields)
        if field is None:
            continue
        expected = field.description or expected
        secret = SecretStr in (field.annotation, *get_args(field.annotation))
        model = next(_models(field.annotation), None)
    return expected, beside, secret


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        value = value[0] if len(value) == 1 else list(map(str, value))
    return excerpt(str(value) if isinstance(value, Path | Address) else value)


def _has_keys(value: object) -> bool:
    """Whether there are sections in *value*, of which some keys may be secret."""
    inner = value if isinstance(value, list | tuple) else ()
    return isinstance(value, Mapping) or any(map(_has_keys, inner))


def _fault(detail: ErrorDetails) -> str:
    loc = tuple(part for part in detail["loc"] if part != "[key]")
    path = ".".join(str(part) for part in loc)
    expected, beside, secret = _expectation(loc)
    if detail["type"] == "extra_forbidden":
        return f"{path}: unknown key{did_you_mean(str(loc[-1]), beside, shown=0)}"
    if detail["type"] == "missing":
        return f"{path}: is missing; expected {expected}"
    hidden = secret or _has_keys(detail["input"])
    found = "a value that is not shown" if hidden else _shown(detail["input"])
    reason = str(detail.get("ctx", {}).get("error", ""))
    if "; expected " in reason:
        return f"{path}: found {found}; {reason}"
    return f"{path}: found {found}; expected {expected}"
