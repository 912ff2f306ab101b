"""The table of streams against the releases of Synapse that are installed."""

from __future__ import annotations

import json
import subprocess

import pytest

from tcprepl.streams.releases import NEWEST, parse_release, streams_of
from tests.interop.environments import RELEASES, installed_version, python_of

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

LIST_THEM = """
import json
from synapse.replication.tcp.streams import STREAMS_MAP
print(json.dumps(sorted(STREAMS_MAP)))
"""


@pytest.mark.parametrize("name", sorted(RELEASES))
def test_table_has_exactly_the_streams_of_the_release(name: str) -> None:
    ran = subprocess.run(
        [python_of(name), "-c", LIST_THEM], capture_output=True, text=True, check=True
    )
    release = parse_release(installed_version(name))
    assert sorted(streams_of(release)) == json.loads(ran.stdout.splitlines()[-1])


def test_table_was_compared_with_the_newest() -> None:
    assert parse_release(installed_version("newest")) == NEWEST
