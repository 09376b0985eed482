"""What the apps of a demo send."""

import random

import msgspec

EVENTS = 48_000
EVENTS_PER_REQUEST = 200
HEADERS = {"Content-Type": "application/x-ndjson"}
RETRIED_SHARE = 0.04
"""Share of requests that their sender repeats, as apps do whose connection broke before they read the answer."""

APPS = ("wiki", "tickets", "meetings", "design", "crm")
ACTIONS = ("page_viewed", "comment_added", "file_uploaded", "call_started", "search_run", "report_exported")
PEOPLE = 400


def requests(rng: random.Random, now_ms: int) -> list[list[bytes]]:
    """What the apps send: people act, clocks are coarse, and senders repeat themselves."""
    made: list[list[bytes]] = []
    clock_ms = now_ms - 3_600_000
    for _ in range(EVENTS // EVENTS_PER_REQUEST):
        if made and rng.random() < RETRIED_SHARE:
            made.append(rng.choice(made[-20:]))
            continue
        request = []
        for _ in range(EVENTS_PER_REQUEST):
            clock_ms += rng.choice((0, 0, 0, 1, 20))
            person, app = int(rng.paretovariate(0.7)) % PEOPLE, rng.choice(APPS)
            event = {
                "appId": app,
                "timestamp": clock_ms,
                "email": f"person{person}@example.com",
                "eventName": rng.choice(ACTIONS),
            }
            request.append(msgspec.json.encode(event))
        made.append(request)
    return made


def distinct(made: list[list[bytes]]) -> int:
    """How many different events these requests have."""
    return len({event for request in made for event in request})
