"""schemathesis asks the server everything that its own description allows, and what it does not.

No answer may be a 5xx, or one that the description does not have.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.harness import Server
from tests.interop.web_tools import python_with

#: Requests for each operation; ``SEED`` makes a run repeatable.
EXAMPLES = 25
SEED = 20160301
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "missing_required_header",
)


@pytest.mark.timeout(300)
def test_every_answer_is_as_described(tmp_path: Path) -> None:
    """A bounded run over the whole description, valid requests and invalid ones."""
    python = python_with("schemathesis==4.32.5")
    with Server(tmp_path / "server") as server:
        described = server.request("GET", "/openapi.json")
        assert described["paths"].keys() >= {"/", "/_synapse/replication", "/health"}
        # What goes on for ever would be waited for, and a poll may wait for ten minutes.
        del described["paths"]["/_tcprepl/v1/events"]
        # It ends the server, which is what it is for.
        del described["paths"]["/_tcprepl/v1/drain"]
        for parameter in described["paths"]["/_synapse/replication"]["get"]["parameters"]:
            if parameter["name"] == "timeout":
                parameter["required"] = True
                parameter["schema"]["maximum"] = 20
        document = tmp_path / "openapi.json"
        document.write_text(json.dumps(described))
        ran = subprocess.run(
            [
                python.with_name("schemathesis"),
                "run",
                str(document),
                f"--url={server.url}",
                f"--checks={','.join(CHECKS)}",
                "--phases=examples,coverage,fuzzing",
                "--mode=all",
                f"--max-examples={EXAMPLES}",
                f"--seed={SEED}",
                "--request-timeout=15",
                "--generation-database=none",
                "--no-color",
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
        log = server.process.stdout + server.process.stderr
        assert "Traceback" not in log
        assert "background.failed" not in log
