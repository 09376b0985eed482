"""What a program pays that only names the package, and what a collector that runs in it leaves alone."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE_SECONDS

NAMED = "import collector"
IN_THREADS = """
from collector import SyncCollector
from collector.config import load
with SyncCollector(load()) as collector:
    collector.record(email="user@example.com", event_name="saved")
    collector.record_nowait(email="user@example.com", event_name="seen")
    assert collector.flush(20)
    same(before)
"""
ON_A_LOOP = """
import asyncio
from collector import Collector
from collector.config import load
async def main():
    loop, before = asyncio.get_running_loop(), settings()  # asyncio.run itself handles SIGINT
    its = loop.get_exception_handler(), loop.get_task_factory(), loop.get_debug()
    async with Collector(load()) as collector:
        await collector.record(email="user@example.com", event_name="saved")
        collector.record_nowait(email="user@example.com", event_name="seen")
        await collector.flush()
        same(before)
    same(before)
    assert its == (loop.get_exception_handler(), loop.get_task_factory(), loop.get_debug())
asyncio.run(main())
"""

PROGRAM = """
import asyncio, gc, locale, logging, os, resource, signal, socket, sys, threading, warnings

def settings():
    root = logging.root
    loggers = [logging.getLogger(name) for name in sorted(root.manager.loggerDict) if not name.startswith("collector")]
    return {
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "masked": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "wakeup": (found := signal.set_wakeup_fd(-1), signal.set_wakeup_fd(found))[0],
        "logging": (root.handlers[:], root.level, root.filters[:], root.manager.disable, logging.raiseExceptions),
        "loggers": [(log.name, log.level, log.handlers) for log in loggers if log.level or log.handlers],
        "classes": (logging.getLoggerClass(), logging.getLogRecordFactory()),
        "policy": asyncio.get_event_loop_policy(),
        "hooks": (sys.excepthook, sys.unraisablehook, threading.excepthook, sys.gettrace(), sys.getprofile()),
        "streams": (sys.stdout, sys.stderr),
        "interpreter": (sys.getswitchinterval(), sys.getrecursionlimit(), sys.get_int_max_str_digits()),
        "garbage": (gc.get_threshold(), gc.isenabled(), gc.get_freeze_count(), gc.callbacks[:]),
        "warnings": [repr(each) for each in warnings.filters],
        "locale": locale.setlocale(locale.LC_ALL),
        "process": (os.getcwd(), (mask := os.umask(0), os.umask(mask))[0], resource.getrlimit(resource.RLIMIT_NOFILE)),
        "environment": dict(os.environ),
        "sockets": socket.getdefaulttimeout(),
    }

def same(before):
    now = settings()
    assert now == before, [(name, before[name], now[name]) for name in now if now[name] != before[name]]
"""


def printed(source: str, folder: Path) -> str:
    """What a program prints that ends well and complains of nothing."""
    environment = {
        "COLLECTOR_APPS__DEFAULT": "wiki",
        "COLLECTOR_QUEUE__PATH": str(folder / "queue"),
        "COLLECTOR_UPSTREAM__BASE_URL": "http://127.0.0.1:9",
        "COLLECTOR_UPSTREAM__TOKEN_URL": "http://127.0.0.1:9",
        "COLLECTOR_UPSTREAM__CLIENT_ID": "nobody",
        "COLLECTOR_UPSTREAM__CLIENT_SECRET": "nothing",
        "COLLECTOR_STOP__DEADLINE": "100ms",
    }
    command = [sys.executable, "-c", source]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=PATIENCE_SECONDS, env=environment
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_importing_the_package_starts_nothing_and_leaves_the_heavy_modules_alone(tmp_path: Path) -> None:
    source = """
import sys, threading
import collector
assert threading.active_count() == 1
print(*sorted({"aiohttp", "asyncio", "click", "sqlite3", "structlog"} & sys.modules.keys()))
"""
    assert printed(source, tmp_path) == "\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("source", [NAMED, IN_THREADS, ON_A_LOOP], ids=["named", "in threads", "on a loop"])
def test_nothing_of_the_program_around_it_is_set(tmp_path: Path, source: str) -> None:
    imports = "" if source is NAMED else "import collector.agent, collector.sync\n"  # what other packages set is theirs
    printed(f"{PROGRAM}{imports}before = settings()\n{source}\nsame(before)\n", tmp_path)
