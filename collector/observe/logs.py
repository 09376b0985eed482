"""Logs: events with stable names and fields, through the standard library's logging.

The library logs under the name `collector` and sets nothing up: a host program's own handlers get its records, the
event as the message and the fields as the record's attributes. `configure` is for the command line.
"""

import json
import logging
import sys
from typing import Any, cast

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

ROOT = "collector"

logging.getLogger(ROOT).addHandler(logging.NullHandler())

SECRET_WORDS = ("secret", "token", "authorization", "password")


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
    """No field whose name speaks of a secret keeps its value."""
    for name in event:
        if any(word in name.lower() for word in SECRET_WORDS):
            event[name] = "***"
    return event


def configure(level: str, log_format: str) -> None:
    """Logs of this process go to standard error, as JSON lines or, on a terminal, for people."""
    as_console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    renderer: Any = (
        structlog.dev.ConsoleRenderer() if as_console else structlog.processors.JSONRenderer(serializer=_json)
    )
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    final: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if not as_console:
        final.append(structlog.processors.format_exc_info)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[*final, renderer]))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(ROOT).setLevel(level.upper())


def _json(event: EventDict, **_: Any) -> str:
    try:
        return msgspec.json.encode(event, enc_hook=str).decode()
    except UnicodeEncodeError:  # a lone surrogate, as in the name of a file that is not UTF-8
        return json.dumps(event, default=str)
