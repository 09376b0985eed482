"""What the integrations share: whom they record with, and that recording never breaks what it is about."""

import logging
from collections.abc import Callable, Mapping, MutableMapping
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

log = logging.getLogger(__name__)

Usage = tuple[str, str]
"""An email and an event name."""

RECORDED = "collector.recorded"
"""What a request says in its ASGI scope or WSGI environ of who has recorded it."""


class Records(Protocol):
    """A `collector.client.Client`."""

    def record(
        self, *, email: str, event_name: str, timestamp_ms: int | None = None, app_id: str | None = None
    ) -> object:
        """The event is taken, without waiting."""
        ...


@runtime_checkable
class RecordsNowait(Protocol):
    """A `collector.SyncCollector`, or on its own loop a `collector.Collector`."""

    def record_nowait(
        self, *, email: str, event_name: str, timestamp_ms: int | None = None, app_id: str | None = None
    ) -> bool:
        """Whether the event was taken, without waiting."""
        ...


Recorder = Records | RecordsNowait


class Recording:
    """Records what `find_usage` finds, if anything. What goes wrong is logged the first time, and goes no further.

    An event for which the recorder has no room is dropped: that, the recorder itself counts and says.
    """

    def __init__(self, recorder: Recorder, find_usage: Callable[..., Usage | None], app_id: str | None) -> None:
        self._record = recorder.record_nowait if isinstance(recorder, RecordsNowait) else recorder.record
        self._find_usage = find_usage
        self._app_id = app_id
        self._has_said = False

    def record(
        self, *arguments: object, named: Mapping[str, Any] = MappingProxyType({}), timestamp_ms: int | None = None
    ) -> None:
        """What `find_usage` says of the arguments, some of which may be `named`, is recorded. Never raises."""
        try:
            usage = self._find_usage(*arguments, **named)
            if usage is not None:
                email, event_name = usage
                self._record(email=email, event_name=event_name, timestamp_ms=timestamp_ms, app_id=self._app_id)
        except Exception:  # whatever it is, the request must go on
            if not self._has_said:
                self._has_said = True  # first, because a handler of logs may come here again
                log.exception("a usage event could not be recorded; further ones like it are not logged")


def once_a_request(find_usage: Callable[[Any, Any], Usage | None], end: object) -> Callable[..., Usage | None]:
    """What `find_usage` finds, and nothing more once another middleware to the same `end` has recorded the request.

    So it is where an application that has one is mounted in another that has it too.
    """

    def find(request: MutableMapping[str, Any], response: object) -> Usage | None:
        recorded: tuple[object, ...] = request.get(RECORDED, ())
        usage = None if end in recorded else find_usage(request, response)
        if usage is not None:
            request[RECORDED] = (*recorded, end)
        return usage

    return find
