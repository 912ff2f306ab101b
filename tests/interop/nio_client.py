"""A real Matrix client, matrix-nio, that types and comes online; run in nio's environment.

``python nio_client.py URL TOKEN USER ROOM``: prints what the server answered as JSON lines.
"""

from __future__ import annotations

import asyncio
import json
import sys

import nio


async def main(url: str, token: str, user: str, room: str) -> None:
    """Log in with a token, set typing, presence, a receipt, and send to a device."""
    client = nio.AsyncClient(url, user)
    try:
        answers = [
            await client.login(token=token),
            await client.whoami(),
            await client.room_typing(room, typing_state=True, timeout=20_000),
            await client.set_presence("online", "busy bee"),
            await client.get_presence(user),
            await client.update_receipt_marker(room, "$event"),
            await client.to_device(
                nio.ToDeviceMessage("m.test", "@bob:example.com", "DEVICE", {"n": 1})
            ),
            await client.room_typing(room, typing_state=False),
        ]
    finally:
        await client.close()
    for answer in answers:
        fields = {
            name: getattr(answer, name)
            for name in ("user_id", "presence", "status_msg", "message")
            if getattr(answer, name, None) is not None
        }
        print(json.dumps({"answer": type(answer).__name__, **fields}))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
