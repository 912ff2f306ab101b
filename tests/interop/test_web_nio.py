"""matrix-nio, a real client, against the client paths; nc sees the rows."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.harness import Server, Terminal, program
from tests.interop.web_tools import python_with

USER, ROOM = "@alice:example.com", "!room:example.com"
CONFIG = f"""
http:
  client_tokens:
    - token: alices-token
      user_id: "{USER}"
streams:
  extra:
    - to_device_messages
"""


def test_nio_types_comes_online_and_netcat_sees_it(tmp_path: Path) -> None:
    """With nothing but a token, as it logs in anywhere."""
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    nio = python_with("matrix-nio==0.26.0")
    with (
        Server(tmp_path / "server", "--config", str(config)) as server,
        Terminal([program("nc"), "127.0.0.1", str(server.port)]) as nc,
    ):
        nc.expect(r"^PING \d+ tcprepl/1 [0-9a-f]{16}$")
        nc.type("REPLICATE\n")
        nc.expect(r"^POSITION user_signature master \d+ \d+$")
        ran = subprocess.run(
            [
                nio,
                Path(__file__).with_name("nio_client.py"),
                server.url,
                "alices-token",
                USER,
                ROOM,
            ],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ran.returncode == 0, ran.stderr
        answers = [json.loads(line) for line in ran.stdout.splitlines()]
        assert [found["answer"] for found in answers] == [
            "LoginResponse",
            "WhoamiResponse",
            "RoomTypingResponse",
            "PresenceSetResponse",
            "PresenceGetResponse",
            "UpdateReceiptMarkerResponse",
            "ToDeviceResponse",
            "RoomTypingResponse",
        ], ran.stdout
        assert answers[1]["user_id"] == USER
        assert (answers[4]["presence"], answers[4]["status_msg"]) == ("online", "busy bee")
        nc.expect(r'^RDATA typing master \d+ \["!room:example\.com",\["@alice:example\.com"\]\]$')
        nc.expect(
            r'^RDATA presence master \d+ \["@alice:example\.com","online",.*"busy bee",true\]$'
        )
        nc.expect(r'^RDATA receipts master \d+ \["!room:example\.com","m\.read","@alice:.*')
        nc.expect(r'^RDATA to_device_messages master \d+ \{"sender":"@alice:example\.com",.*')
        nc.expect(r'^RDATA to_device master \d+ \["@bob:example\.com"\]$')
        nc.expect(r'^RDATA typing master \d+ \["!room:example\.com",\[\]\]$')
