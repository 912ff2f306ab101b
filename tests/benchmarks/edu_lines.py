"""The EDUs of the benchmark as RDATA lines, as a canonical writer sends them.

Four kinds in turn, each as real clients and servers make them: typing (keyed), a read receipt
(keyed), an encrypted to-device message for two devices, and a device list update with its keys.
Used by both sides, each in its own interpreter: nothing but the standard library.
"""

import json

DESTINATIONS = 5
#: Lines that arrive in one read: about 64 kB.
LINES_PER_READ = 100
#: Reads that arrive while a request is under way: enough for a full transaction to each.
READS_PER_REQUEST = 5
_HOST = "matrix.example.com"
_TIME_MS = 1_790_000_000_000
_KEY = "hZv8nJwzQ1Yk5oX2mT7bRcL0sPdVfGuEaIiKyNxM3Bc"
_SIGNATURE = _KEY + "Wq9eRtYuIoPaSdFgHjKlZxCvBnM1234567890abcdeQ"


def row(number):
    """Return row *number*."""
    destination = f"remote{number // 4 % DESTINATIONS}.example.org"
    user = f"@user{number}:{_HOST}"
    room = f"!AbCdEfGhIjKlMnOp{number % 700:03}:{_HOST}"
    kind = number % 4
    key = None
    if kind == 0:
        edu_type = "m.typing"
        content = {"room_id": room, "typing": True, "user_id": user}
        key = [room, user]
    elif kind == 1:
        edu_type = "m.receipt"
        event_id = f"$Zm9yIHRoZSBsb3ZlIG9mIGNhdHMgYW5kIGRvZ3M{number:07}"
        receipt = {"data": {"ts": _TIME_MS + number}, "event_ids": [event_id]}
        content = {room: {"m.read": {user: receipt}}}
        key = [room, user]
    elif kind == 2:
        edu_type = "m.direct_to_device"
        friend = f"@friend{number}:{destination}"
        content = {
            "message_id": f"m{number}",
            "messages": {friend: {"ABCDEFGHIJ": _olm(1), "KLMNOPQRST": _olm(2)}},
            "sender": user,
            "type": "m.room.encrypted",
        }
    else:
        edu_type = "m.device_list_update"
        device = f"DEVICE{number % 10_000:04}"
        algorithms = ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"]
        content = {
            "device_display_name": "Phone",
            "device_id": device,
            "keys": {
                "algorithms": algorithms,
                "device_id": device,
                "keys": {"curve25519:" + device: _KEY, "ed25519:" + device: _KEY},
                "signatures": {user: {"ed25519:" + device: _SIGNATURE}},
                "user_id": user,
            },
            "prev_id": [number],
            "stream_id": number + 1,
            "user_id": user,
        }
    edu = {
        "content": content,
        "destination": destination,
        "edu_type": edu_type,
        "origin": _HOST,
    }
    return ["e", edu] if key is None else ["k", {"edu": edu, "key": key}]


def _olm(number):
    """Return an encrypted message for one device."""
    return {
        "algorithm": "m.olm.v1.curve25519-aes-sha2",
        "ciphertext": {_KEY: {"body": _SIGNATURE * 4, "type": number % 2}},
        "sender_key": _KEY,
    }


def lines(count):
    """Return *count* RDATA lines, each ended by LF."""
    return [
        b"RDATA federation master %d %s\n"
        % (n + 1, json.dumps(row(n), separators=(",", ":"), sort_keys=True).encode())
        for n in range(count)
    ]
