"""How the command line runs asyncio: uvloop, and signals that ask for an orderly end first."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import click

Result = TypeVar("Result")


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, on uvloop where it is installed."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(work)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop  # noqa: PLC0415 - not there on other interpreters than CPython
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


SAME_STOP_SECONDS = 0.1
"""Signals that come so close together are one wish: timeout(1) sends its own to the process and to its group."""


def stop_signals(*numbers: signal.Signals) -> asyncio.Event:
    """An event that the first of these signals sets; SIGTERM or SIGINT, where none is named.

    A later one ends the process at once, with 128 + its number. That is safe: what was acknowledged is on disk.
    """
    asked = asyncio.Event()
    first_at = 0.0

    def on_signal(number: int) -> None:
        nonlocal first_at
        if not asked.is_set():
            first_at = loop.time()
        elif loop.time() - first_at > SAME_STOP_SECONDS:
            click.echo("stopped at once by a second signal", err=True)
            sys.stderr.flush()
            os._exit(128 + number)
        asked.set()

    loop = asyncio.get_running_loop()
    for number in numbers or (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    return asked
