"""Logs: events with stable names and fields, through the standard library's logging.

The library logs under the name `collector` and sets nothing up: a host program's own handlers get its records, the
event as the message and the fields as the record's attributes. `configure` is for the command line.
"""

import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any, cast

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

ROOT = "collector"

logging.getLogger(ROOT).addHandler(logging.NullHandler())

SECRET_WORDS = ("secret", "token", "authorization", "password")
SECRET_VALUES = re.compile(r"[^\s@<>()\"',:;=]+@[^\s@<>()\"',:;=]+|(?<=Bearer )\S+")
"""People's addresses, which upstream's reasons may hold, and tokens."""

LINES_A_SECOND = 10
SAMPLED_BY = ("app", "source", "task")
"""The fields that tell one flood from another, beside the event's name."""

PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
"""What journald files a line under that begins with <N> (sd-daemon(3))."""


class Sampler(logging.Filter):
    """Lets through so many lines a second of one event and app, source or task, and says how many it left out.

    Debugging is not sampled: who asks for that wants all of it.
    """

    def __init__(self, lines_a_second: int = LINES_A_SECOND, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._lines_a_second = lines_a_second
        self._now = now
        self._second = 0
        self._lines: dict[tuple[str, ...], int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """See logging.Filter."""
        if record.levelno <= logging.DEBUG:
            return True
        if int(self._now()) != self._second:
            self.say_left_out()
        key = (str(record.msg), *(str(getattr(record, field, "")) for field in SAMPLED_BY))
        count = self._lines[key] = self._lines.get(key, 0) + 1
        return count <= self._lines_a_second

    def say_left_out(self) -> None:
        """A line for each flood of a second that is over. To be called about once a second, as floods end unseen."""
        second = int(self._now())
        if second == self._second:
            return
        self._second, lines, self._lines = second, self._lines, {}
        for (event, *fields), count in lines.items():
            if count > self._lines_a_second:
                known = {name: value for name, value in zip(SAMPLED_BY, fields, strict=True) if value}
                get_logger(__name__).warning("logs.left_out", of=event, lines=count - self._lines_a_second, **known)


def say_left_out() -> None:
    """See `Sampler`; where a host program's own handlers get the records, nothing is left out."""
    for handler in logging.getLogger().handlers:
        for sampler in handler.filters:
            if isinstance(sampler, Sampler):
                sampler.say_left_out()


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger of events; independent of how a host program has set structlog up."""
    return cast(
        "structlog.stdlib.BoundLogger",
        structlog.wrap_logger(
            logging.getLogger(name),
            wrapper_class=structlog.stdlib.BoundLogger,
            processors=[structlog.stdlib.filter_by_level, redact, structlog.stdlib.render_to_log_kwargs],
        ),
    )


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """No field whose name speaks of a secret keeps its value, and no text a person's address, also inside of others."""
    for name, value in event.items():
        event[name] = "***" if any(word in name.lower() for word in SECRET_WORDS) else _redacted(value)
    return event


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return without_addresses(value)
    if isinstance(value, list):
        return [_redacted(each) for each in value]
    if isinstance(value, dict):
        return redact(None, "", dict(value))
    return value


def without_addresses(text: str) -> str:
    """The text without people's addresses and without tokens."""
    return SECRET_VALUES.sub("***", text)


def configure(level: str, log_format: str) -> None:
    """Logs of this process go to standard error, as JSON lines or, on a terminal, for people."""
    as_console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    renderer: Any = structlog.processors.JSONRenderer(serializer=_json)
    if as_console:  # of its own accord it would show each frame's variables, secrets among them
        plain = structlog.dev.plain_traceback
        has_colours = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
        renderer = structlog.dev.ConsoleRenderer(colors=has_colours, exception_formatter=plain)
    to_journal = is_journal(sys.stderr.fileno(), os.environ.get("JOURNAL_STREAM", ""))
    shared: list[Processor] = [structlog.stdlib.add_log_level, structlog.stdlib.ExtraAdder()]
    if not to_journal:  # the journal has its own
        shared.append(structlog.processors.TimeStamper(fmt="iso", utc=True))
    final: list[Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.format_exc_info,
        redact,
    ]
    if to_journal:
        renderer = _with_priority(renderer)
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(Sampler())
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[*final, renderer]))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(ROOT).setLevel(level.upper())


def is_journal(descriptor: int, journal_stream: str) -> bool:
    """Whether what is written there goes to journald, by what systemd says in JOURNAL_STREAM (systemd.exec(5))."""
    try:
        stat = os.fstat(descriptor)
    except OSError:
        return False
    return journal_stream == f"{stat.st_dev}:{stat.st_ino}"


def _with_priority(render: Callable[..., str]) -> Processor:
    def line(logger: WrappedLogger, method: str, event: EventDict) -> str:
        return f"<{PRIORITIES.get(event.get('level', ''), 6)}>{render(logger, method, event)}"

    return line


def _json(event: EventDict, **_: Any) -> str:
    try:
        return msgspec.json.encode(event, enc_hook=str).decode()
    except UnicodeEncodeError:  # a lone surrogate, as in the name of a file that is not UTF-8
        return json.dumps(event, default=str)
