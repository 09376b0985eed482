"""What delivery suffers from at the moment, app by app; its beginning and its end are said in the log, once each.

An app *fails* while upstream does not answer, or says "later": the failures of all apps together are one outage of
upstream, from the first until none fails any more. An app is *held* while a person has to act; each hold is its own.
"""

from collections.abc import Iterator

import msgspec

from collector.clock import Clock
from collector.observe.logs import get_logger

log = get_logger(__name__)


class Trouble(msgspec.Struct):
    """Why one app's events are not delivered. Times are on the monotonic clock."""

    app_id: str
    is_held: bool
    since: float
    reason: str = ""
    again_at: float = 0.0
    waited_events: int = 0
    """The most that were seen waiting."""


class Outages:
    """Who delivers reports here; who wants to know how delivery goes looks here."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._by_app: dict[str, Trouble] = {}
        self._failing_since: float | None = None
        self._failed_events = 0  # of apps that the present outage is over for

    @property
    def failing_since(self) -> float | None:
        """When the present outage of upstream began; None where there is none."""
        return self._failing_since

    def __iter__(self) -> Iterator[Trouble]:
        return iter(self._by_app.values())

    def fail(self, app_id: str, reason: str, *, again_in_seconds: float, waiting_events: int) -> None:
        """Upstream did not take an app's events this time. A held app stays held."""
        trouble = self._by_app.get(app_id) or Trouble(app_id, is_held=False, since=self._clock.monotonic())
        self._note(trouble, reason, again_in_seconds, waiting_events)
        if self._failing_since is None and not trouble.is_held:
            self._failing_since, self._failed_events = trouble.since, 0
            log.warning("flusher.outage_began", app=app_id, reason=reason, again_in_seconds=round(again_in_seconds, 3))

    def hold(self, app_id: str, reason: str, *, again_in_seconds: float, waiting_events: int) -> None:
        """Upstream does not take an app's events until a person has acted."""
        trouble = self._by_app.get(app_id)
        if trouble is None or not trouble.is_held:
            self.end(app_id)
            trouble = Trouble(app_id, is_held=True, since=self._clock.monotonic())
        if trouble.reason != reason:
            log.error("flusher.app_held", app=app_id, reason=reason, again_in_seconds=round(again_in_seconds, 3))
        self._note(trouble, reason, again_in_seconds, waiting_events)

    def end(self, app_id: str) -> None:
        """An app's events are taken again; harmless where they always were."""
        trouble = self._by_app.pop(app_id, None)
        if trouble is None:
            return
        now = self._clock.monotonic()
        if trouble.is_held:
            seconds = round(now - trouble.since, 3)
            log.info("flusher.hold_ended", app=app_id, seconds=seconds, waited_events=trouble.waited_events)
            return
        self._failed_events += trouble.waited_events
        if self._failing_since is not None and all(other.is_held for other in self._by_app.values()):
            seconds, self._failing_since = round(now - self._failing_since, 3), None
            log.info("flusher.outage_ended", seconds=seconds, waited_events=self._failed_events)

    def _note(self, trouble: Trouble, reason: str, again_in_seconds: float, waiting_events: int) -> None:
        trouble.reason = reason
        trouble.again_at = self._clock.monotonic() + again_in_seconds
        trouble.waited_events = max(trouble.waited_events, waiting_events)
        self._by_app[trouble.app_id] = trouble
