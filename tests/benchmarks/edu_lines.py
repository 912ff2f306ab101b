"""The EDUs of the benchmark as RDATA lines, canonical or as Synapse writes them.

Four kinds in turn, each as real clients and servers make them: typing (keyed), a read receipt
(keyed), an encrypted to-device message for two devices, and a device list update with its keys.
Used by both sides, each in its own interpreter: nothing but the standard library.
"""

import json

#: Friendly: what is sent goes to a handful of servers, and fills their transactions.
DESTINATIONS = 5
#: Unfriendly: it goes to as many as a room of some size has.
MANY_DESTINATIONS = 300
#: Lines that arrive in one read: about 64 kB.
LINES_PER_READ = 100
#: Reads that arrive while a request is under way: enough for a full transaction to each.
READS_PER_REQUEST = 5
_HOST = "matrix.example.com"
_TIME_MS = 1_790_000_000_000
_KEY = "hZv8nJwzQ1Yk5oX2mT7bRcL0sPdVfGuEaIiKyNxM3Bc"
_SIGNATURE = _KEY + "Wq9eRtYuIoPaSdFgHjKlZxCvBnM1234567890abcdeQ"


def row(number, destinations=DESTINATIONS):
    """Return row *number* of those for so many destinations, in the order that Synapse writes."""
    destination = f"remote{number // 4 % destinations}.example.org"
    user = f"@user{number}:{_HOST}"
    room = f"!AbCdEfGhIjKlMnOp{number % 700:03}:{_HOST}"
    kind = number % 4
    key = None
    if kind == 0:
        edu_type = "m.typing"
        content = {"room_id": room, "user_id": user, "typing": True}
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
            "messages": {friend: {"ABCDEFGHIJ": _olm(1), "KLMNOPQRST": _olm(2)}},
            "sender": user,
            "type": "m.room.encrypted",
            "message_id": f"m{number}",
        }
    else:
        edu_type = "m.device_list_update"
        device = f"DEVICE{number % 10_000:04}"
        algorithms = ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"]
        content = {
            "user_id": user,
            "device_id": device,
            "device_display_name": "Zo\u00eb\u2019s phone" if number % 8 == 3 else "Phone",
            "stream_id": number + 1,
            "prev_id": [number],
            "keys": {
                "algorithms": algorithms,
                "device_id": device,
                "keys": {"curve25519:" + device: _KEY, "ed25519:" + device: _KEY},
                "signatures": {user: {"ed25519:" + device: _SIGNATURE}},
                "user_id": user,
            },
        }
    edu = {
        "edu_type": edu_type,
        "content": content,
        "origin": _HOST,
        "destination": destination,
    }
    return ["e", edu] if key is None else ["k", {"key": key, "edu": edu}]


def _olm(number):
    """Return an encrypted message for one device."""
    return {
        "algorithm": "m.olm.v1.curve25519-aes-sha2",
        "ciphertext": {_KEY: {"body": _SIGNATURE * 4, "type": number % 2}},
        "sender_key": _KEY,
    }


def lines(count, destinations=DESTINATIONS, canonical=True):
    """Return *count* RDATA lines, each ended by LF."""
    made = []
    for number in range(count):
        one = row(number, destinations)
        if canonical:
            text = json.dumps(one, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
        else:
            text = json.dumps(one, separators=(",", ":"))
        made.append(b"RDATA federation master %d %s\n" % (number + 1, text.encode()))
    return made
