"""What the agent logs, as part of the story."""

import logging
from collections.abc import Callable


class Log(logging.Handler):
    """The agent's warnings are part of the story; errors that speak of a defect are defects."""

    def __init__(self, tell: Callable[..., None], violated: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell
        self._violated = violated

    def emit(self, record: logging.LogRecord) -> None:
        fields = {name: value for name, value in vars(record).items() if name in {"app", "error", "reason", "events"}}
        self._tell("log", "%s %s", record.getMessage(), fields)
        if record.getMessage() in {"agent.task_died", "http.request_crashed"}:
            self._violated(f"{record.getMessage()} {fields} {record.exc_info and record.exc_info[1]!r}")
