"""``tcprepl doctor``: everything that may be wrong on a machine, said once, with the remedy."""

from __future__ import annotations

import json
from pathlib import Path

import click

from tcprepl.app.doctor import Finding, Verdict, examine
from tcprepl.config import BadConfig, build, load
from tcprepl.protocol.display import displayable
from tcprepl.settings import Config

_WORDS = {Verdict.GOOD: "ok", Verdict.WARNING: "WARNING", Verdict.FAULT: "FAULT"}
_COLOURS = {Verdict.GOOD: "green", Verdict.WARNING: "yellow", Verdict.FAULT: "red"}


@click.command("doctor")
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The configuration file of the process.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    help="The data directory; stronger than that of --config.",
)
@click.option("--offline", is_flag=True, help="Ask no other machine (DNS, Redis, .well-known).")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each finding.")
def command(config_file: Path | None, data: Path | None, offline: bool, as_json: bool) -> int:
    """Look at a machine, and say what is wrong with it and what to do.

    Nothing is changed. Run it as the user of the server, before it starts or while it runs. The
    exit code is 0 when all is well, 1 for warnings and 2 for faults.

    \b
    Example:
      $ tcprepl doctor --config /etc/tcprepl/tcprepl.yaml
      ok       data          /var/lib/tcprepl is ours, and not in use
      WARNING  clock         is not kept by NTP
               do: systemctl enable --now systemd-timesyncd
    """
    worst = Verdict.GOOD
    config = _configured(config_file, data)
    if isinstance(config, Finding):
        _tell(config, as_json)
        return int(config.verdict)
    for finding in (*_spelling(config_file), *examine(config, network=not offline)):
        worst = max(worst, finding.verdict)
        _tell(finding, as_json)
    return int(worst)


def _configured(path: Path | None, data: Path | None) -> Config | Finding:
    overrides = {"data_directory": data}
    try:
        loaded = build({}, "defaults", overrides) if path is None else load(path, overrides)
    except BadConfig as error:
        return Finding(
            Verdict.FAULT, "configuration", str(error), "`tcprepl help configuration` has every key"
        )
    return loaded.config


def _spelling(path: Path | None) -> list[Finding]:
    if path is None:
        return []
    warnings = load(path).warnings
    said = [
        Finding(Verdict.WARNING, "configuration", text, "spell it so in the file")
        for text in warnings
    ]
    return said or [Finding(Verdict.GOOD, "configuration", f"{path} is good")]


def _tell(finding: Finding, as_json: bool) -> None:
    if as_json:
        said = finding._asdict() | {"verdict": _WORDS[finding.verdict].lower()}
        click.echo(json.dumps(said, ensure_ascii=True))
        return
    word = click.style(f"{_WORDS[finding.verdict]:<7}", fg=_COLOURS[finding.verdict])
    text = displayable(finding.text, lines=True).replace("\n", "\n" + " " * 24)
    click.echo(f"{word}  {finding.subject:<13}  {text}")
    if finding.remedy:
        click.echo(f"{'':<9}do: {displayable(finding.remedy)}")
