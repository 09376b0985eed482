"""Usage events from lines of a log and from calls."""

import logging
from collections.abc import Iterator

import pytest

from collector.integrations.decorator import records_usage
from collector.integrations.logs import UsageHandler
from tests.integrations.recorders import ListRecorder, NowaitRecorder


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("wiki.usage")
    logger.setLevel(logging.INFO)
    yield logger
    logger.handlers.clear()


@pytest.mark.parametrize("recorder", [ListRecorder(), NowaitRecorder()])
def test_a_log_record_with_a_person_and_an_action_is_a_usage_event(
    logger: logging.Logger, caplog: pytest.LogCaptureFixture, recorder: ListRecorder
) -> None:
    logger.addHandler(UsageHandler(recorder, app_id="wiki"))
    logger.info("saved", extra={"email": "user@example.com", "event_name": "page_saved"})
    logger.info("nobody in particular")
    logger.info("no action", extra={"email": "user@example.com"})
    [event] = recorder.events
    assert event == ("user@example.com", "page_saved", int(caplog.records[0].created * 1000), "wiki")


def test_a_handler_that_fails_is_logged_once_also_where_it_hears_of_its_own_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(record: logging.LogRecord) -> tuple[str, str] | None:
        raise KeyError(record.msg)

    root = logging.getLogger()
    handler = UsageHandler(ListRecorder(), usage=broken)
    root.addHandler(handler)
    try:
        for _ in range(3):
            root.warning("something")
    finally:
        root.removeHandler(handler)
    assert [record.levelname for record in caplog.records].count("ERROR") == 1


def usage(email: str, *, timestamp_ms: int = 0) -> tuple[str, str] | None:
    return (email, f"exported_{timestamp_ms}") if email else None


def test_a_call_that_returns_is_recorded_and_stays_what_it_was() -> None:
    recorder = ListRecorder()

    @records_usage(recorder, usage, app_id="wiki")
    def export(email: str, *, timestamp_ms: int = 0) -> str:
        """Says so."""
        if timestamp_ms < 0:
            raise ValueError("too early")
        return f"{email} {timestamp_ms}"

    assert export("user@example.com", timestamp_ms=7) == "user@example.com 7"
    assert export("") == " 0"
    with pytest.raises(ValueError, match="too early"):
        export("user@example.com", timestamp_ms=-1)
    assert export.__doc__ == "Says so."
    assert recorder.events == [("user@example.com", "exported_7", None, "wiki")]


async def test_a_coroutine_is_recorded_when_it_has_returned() -> None:
    recorder = NowaitRecorder()

    class Exports:
        @records_usage(recorder, lambda _exports, email: (email, "exported"))
        async def export(self, email: str) -> int:
            assert not recorder.events
            return len(email)

    running = Exports().export("user@example.com")
    assert not recorder.events
    assert await running == 16
    assert recorder.usages == [("user@example.com", "exported")]


def test_a_callable_that_fails_is_logged_once_and_breaks_no_call(caplog: pytest.LogCaptureFixture) -> None:
    @records_usage(ListRecorder(), lambda number: 1 / number)
    def same(number: int) -> int:
        return number

    assert [same(number) for number in (0, 0, 1)] == [0, 0, 1]
    assert len(caplog.records) == 1
