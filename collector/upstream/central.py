"""What an edge sends to its central collector and what the answers mean, without any I/O.

The path is that of publishUsageEvents, which a collector serves as well: the app is in the path, so a batch goes as it
is. The answer says what became of each event, by its position in the batch: nobody has to look for the guilty ones.
Only an answer whose counts come to the batch's own is believed; whatever else may stand in between has no say in what
counts as delivered.
"""

from collections.abc import Mapping

import msgspec

from collector.bodies import Rejection
from collector.config.kinds import Secret, UnixUrl
from collector.contract.operations import PUBLISH_USAGE_EVENTS
from collector.errors import UNPARSABLE, Rejected, Retryable, TooLarge
from collector.upstream.wire import Request, Response, raise_for_unexpected, said, usage_events_request

VERDICT_BYTES = 4096
"""More than a report's entry for one refused event takes: a collector cuts what it shows to some hundred bytes."""


class _Report(msgspec.Struct):
    """The shape of all answers of a collector; every field is required."""

    accepted: int
    duplicates: int
    rejected: int
    errors: list[Rejection]

    @property
    def last_reason(self) -> str:
        return self.errors[-1].reason if self.errors else "no reason"


def central_name(url: str | UnixUrl) -> str:
    """What messages and dead letters call a central collector."""
    return f"central collector {url}"


def forward_request(url: str | UnixUrl, *, app_id: str, lines: bytes, token: Secret | None) -> Request:
    """A batch for a central collector. Raises AppUnusable where the app's name cannot stand in a path."""
    base_url = "http://localhost" if isinstance(url, UnixUrl) else url  # a socket's file is the transport's business
    path = PUBLISH_USAGE_EVENTS.path
    bearer = None if token is None else token.reveal()
    request = usage_events_request(base_url, path, app_id=app_id, lines=lines, token=bearer)
    return msgspec.structs.replace(request, name=central_name(url))


def read_report(response: Response, name: str, *, events: int, now_seconds: float) -> Mapping[int, str]:
    """The events that were refused for good, by position, each with the reason; all others are stored or were known.

    Raises Rejected (a 400 that is about the request as a whole), TooLarge (413), Unusable (other 3xx and 4xx) or
    Retryable (429, 5xx, and answers that no collector gives), all of them with nothing taken.
    """
    status, report = response.status, _report_of(response)
    if status == 413 and (events > 1 or report is not None):
        raise TooLarge(f"{name}: 413, too large{said(response)}")
    if status in {200, 400}:
        if report is None:
            raise Retryable(f"{name}: {status}, but no collector answers so; what is in between?{said(response)}")
        return _refused(report, status, name, events)
    if report is not None:
        response = msgspec.structs.replace(response, body=report.last_reason.encode())
    return raise_for_unexpected(response, name, now_seconds)


def _refused(report: _Report, status: int, name: str, events: int) -> Mapping[int, str]:
    counted = report.accepted + report.duplicates + report.rejected
    if status == 400 and not counted:
        raise Rejected(f"{name}: 400: {report.last_reason}")
    reasons = {error.index: f"{name}: {error.reason}" for error in report.errors if error.index is not None}
    named = len(reasons) == report.rejected and all(0 <= index < events for index in reasons)
    if counted != events or min(report.accepted, report.duplicates, report.rejected) < 0 or not named:
        raise Retryable(
            f"{name}: {status} for {events} events, and its answer speaks of {report.accepted} accepted, "
            f"{report.duplicates} duplicates and {report.rejected} rejected, {len(reasons)} of them by index"
        )
    if (status == 200) is bool(reasons):
        raise Retryable(f"{name}: {status} with {len(reasons)} rejected events, which no collector answers")
    return dict(sorted(reasons.items()))


def _report_of(response: Response) -> _Report | None:
    """What a collector says; None where it is not a collector that says it."""
    try:
        return msgspec.json.decode(response.body, type=_Report)
    except UNPARSABLE:
        return None
