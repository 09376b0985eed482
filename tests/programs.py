"""Python programs with a collector in them, in processes of their own."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

from tests.patience import PATIENCE_SECONDS
from tests.settings import sandboxed, variables

NOWHERE = "http://127.0.0.1:9"

PROGRAM = """
import os, sys, time
from pathlib import Path
from collector import SyncCollector
from collector.config import load

collector = SyncCollector(load(environment=dict(os.environ)))

def record(number):
    return collector.record(email="user@example.com", event_name="saved", timestamp_ms=number)

def record_nowait(number):
    assert collector.record_nowait(email="user@example.com", event_name="saved", timestamp_ms=number)
"""


def program(folder: Path, source: str, upstream_url: str = NOWHERE, **settings: str) -> subprocess.Popen[str]:
    """A Python program with a collector in it."""
    defaults = sandboxed(folder, upstream_url) | {
        "apps__default": "wiki",
        "flush__linger": "20ms",
        "stop__deadline": "500ms",
    }
    return subprocess.Popen(
        # Python 3.12.0 to 3.12.3 took ?1 for a name.
        [sys.executable, "-W", "error", "-W", "ignore:Binding:DeprecationWarning", "-c", PROGRAM + source],
        env=os.environ | variables(defaults | settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> str:
    """What it printed, once it has ended well and complained of nothing."""
    with process:
        try:
            said, complained = process.communicate(timeout=PATIENCE_SECONDS)
        finally:
            process.kill()
    assert (process.returncode, complained) == (0, ""), complained
    return said


def waiting(folder: Path) -> int:
    """Events in the queue's file."""
    connection = sqlite3.connect(folder / "queue" / "queue.sqlite3")
    try:
        (events,) = connection.execute("SELECT coalesce(sum(waiting_events), 0) FROM app").fetchone()
        return int(events)
    finally:
        connection.close()
