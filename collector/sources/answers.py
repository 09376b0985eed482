"""What became of requests, as their clients are told and as it is counted. Such an answer has the shape of `Report`."""

import functools
import math
import time
from collections.abc import Sequence

import msgspec

from collector.bodies import Rejection
from collector.errors import CollectorError, DiskFull, MalformedBody, QueueUnavailable, Retryable, TooLarge
from collector.intake import Report
from collector.observe.logs import get_logger
from collector.observe.metrics import Metrics, Verdicts
from collector.sources.http_message import Answer, Refusal, header_lines

log = get_logger(__name__)

SOURCE = "http"
JSON_TYPE = header_lines({"Content-Type": "application/json"})
DEFAULT_RETRY_AFTER_SECONDS = 1.0

_encode = msgspec.json.Encoder().encode


class Answers:
    """Those of one source."""

    def __init__(self, metrics: Metrics) -> None:
        self._verdicts = Verdicts(metrics.events, SOURCE)
        self._refusals = metrics.refusals
        self._observe_seconds = metrics.acknowledgement_seconds.observe

    def count(self, report: Report) -> None:
        """Counts events of which nothing else will be said."""
        self._verdicts.count(report.accepted, report.duplicates, report.rejected)

    def taken(self, report: Report, started: float) -> Answer:
        """To a post of which nothing is left to say, and whose head was there at `started` (perf_counter)."""
        self.count(report)
        self._observe_seconds(time.perf_counter() - started)
        if report.rejected:
            return Answer(400, line(report), JSON_TYPE)
        return _all_taken(report.accepted, report.duplicates)

    def taken_in_a_row(self, duplicates: Sequence[int], started: Sequence[float]) -> list[Answer]:
        """To posts of one event each, whose heads were there at `started`; those at `duplicates` were known."""
        self._verdicts.count(len(started) - len(duplicates), len(duplicates), 0)
        now = time.perf_counter()
        for each in started:
            self._observe_seconds(now - each)
        answers = [_all_taken(1, 0)] * len(started)
        for position in duplicates:
            answers[position] = _all_taken(0, 1)
        return answers

    def refused(self, error: Exception, report: Report | None = None) -> Answer:
        """What the client is told of an error; one that nobody foresaw is logged without the request's content.

        `report` is what has become of events that came before.
        """
        match error:
            case Refusal():
                refusal = error
            case TooLarge():
                refusal = Refusal(413, str(error), "too_large")
            case MalformedBody():
                refusal = Refusal(400, str(error), "malformed")
            case Retryable():
                status = 507 if isinstance(error, DiskFull) else 503
                label = "unavailable" if isinstance(error, QueueUnavailable) else "overload"
                refusal = Refusal(status, str(error), label, retry_after(error.retry_after_seconds))
            case CollectorError():
                log.error("http.request_failed", error=str(error))
                refusal = Refusal(503, str(error), "unavailable", retry_after(None))
            case _:
                log.error("http.request_crashed", exc_info=error)
                refusal = Refusal(500, "an error of the collector; its log has the details", "crashed")
        report = report or Report()
        report.errors = [*report.errors, Rejection(str(refusal))]
        self._refusals.labels(SOURCE, refusal.label).inc()
        return Answer(refusal.status, line(report), JSON_TYPE + header_lines(refusal.headers))


def line(report: Report) -> bytes:
    """The report as JSON, with a line end for who reads it in a terminal."""
    return _encode(report) + b"\n"


def retry_after(seconds: float | None) -> dict[str, str]:
    """The header field that says so."""
    return {"Retry-After": str(math.ceil(seconds or DEFAULT_RETRY_AFTER_SECONDS))}


@functools.lru_cache(maxsize=64)
def _all_taken(accepted: int, duplicates: int) -> Answer:
    return Answer(200, line(Report(accepted, duplicates)), JSON_TYPE)
