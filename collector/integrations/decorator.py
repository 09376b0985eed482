"""For functions: a usage event for each call that returns.

    @records_usage(client, lambda user, report: (user.email, "report_exported"))
    def export(user, report): ...

A call that raises is none.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

from collector.integrations.recording import Recorder, Recording, Usage

Function = TypeVar("Function", bound=Callable[..., Any])


def records_usage(
    recorder: Recorder, usage: Callable[..., Usage | None], *, app_id: str | None = None
) -> Callable[[Function], Function]:
    """Makes a function, or a coroutine function, record what `usage` says of its arguments when it has returned."""
    recording = Recording(recorder, usage, app_id)

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            recording.record(*args, named=kwargs)
            return result

        @functools.wraps(function)
        async def call_and_await(*args: Any, **kwargs: Any) -> Any:
            result = await function(*args, **kwargs)
            recording.record(*args, named=kwargs)
            return result

        return cast("Function", call_and_await if inspect.iscoroutinefunction(function) else call)

    return decorate
