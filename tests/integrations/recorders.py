"""Recorders that keep what they get."""

from typing import NamedTuple


class Recorded(NamedTuple):
    email: str
    event_name: str
    timestamp_ms: int | None
    app_id: str | None


class ListRecorder:
    """Has `record` alone, as the thin client; keeps the events."""

    def __init__(self) -> None:
        self.events: list[Recorded] = []

    def record(
        self, *, email: str, event_name: str, timestamp_ms: int | None = None, app_id: str | None = None
    ) -> bool:
        self.events.append(Recorded(email, event_name, timestamp_ms, app_id))
        return True

    @property
    def usages(self) -> list[tuple[str, str]]:
        return [(event.email, event.event_name) for event in self.events]


class NowaitRecorder(ListRecorder):
    """Has `record_nowait` beside a `record` that waits, as the collector itself."""

    def record(self, **_: object) -> bool:
        raise AssertionError("an integration must not wait")

    def record_nowait(
        self, *, email: str, event_name: str, timestamp_ms: int | None = None, app_id: str | None = None
    ) -> bool:
        return super().record(email=email, event_name=event_name, timestamp_ms=timestamp_ms, app_id=app_id)
