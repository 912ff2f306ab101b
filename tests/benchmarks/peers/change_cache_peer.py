"""Times one stream change cache; runs in any Python from 3.7 on, with Synapse or with tcprepl.

Called with ``synapse`` or ``tcprepl``, a number of rooms and a number of repetitions, it
writes one JSON object: for each repetition the us of CPU of a query and of an update. Both systems
are driven by the same code.
"""

import json
import random
import sys
import time

#: Rooms that changed between the two tokens of a query.
CHANGED = 10
#: Rooms that either cache remembers at most: Synapse's default.
MAX_SIZE = 10_000
QUERIES = 5_000
UPDATES = 50_000


def make(system, rooms):
    """Return an empty cache, its method for updates and its method for queries."""
    if system == "synapse":
        from synapse.util.caches.stream_change_cache import StreamChangeCache

        cache = StreamChangeCache(f"BenchCache{rooms}", 1, max_size=MAX_SIZE)
        return cache.entity_has_changed, cache.get_all_entities_changed
    from tcprepl.ephemeral.change_cache import StreamChangeCache

    cache = StreamChangeCache(1, max_size=MAX_SIZE)
    return cache.entity_has_changed, cache.entities_changed_since


def main(system, count, repetitions):
    """Fill a cache by changing every room once, then time it."""
    chance = random.Random(1)
    rooms = [f"!room{number}:example.com" for number in range(count)]
    update, query = make(system, count)
    token = 1
    for room in rooms:
        token += 1
        update(room, token)
    figures = {"query_us": [], "update_us": []}
    for _ in range(repetitions):
        chosen = chance.choices(rooms, k=UPDATES)
        started = time.process_time()
        for room in chosen:
            token += 1
            update(room, token)
        figures["update_us"].append((time.process_time() - started) / UPDATES * 1e6)
        # So that exactly CHANGED rooms changed after the token that is asked for.
        for room in rooms[:CHANGED]:
            token += 1
            update(room, token)
        after = token - CHANGED
        assert sorted(query(after)) == sorted(rooms[:CHANGED])
        started = time.process_time()
        for _ in range(QUERIES):
            query(after)
        figures["query_us"].append((time.process_time() - started) / QUERIES * 1e6)
    json.dump(figures, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
