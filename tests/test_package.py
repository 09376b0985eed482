"""What a program pays that only names the package."""

import subprocess
import sys

PROGRAM = """
import gc, logging, signal, sys, threading
signals = [signal.getsignal(number) for number in signal.valid_signals()]
handlers, level, interval = list(logging.root.handlers), logging.root.level, sys.getswitchinterval()
collecting = gc.get_threshold(), gc.isenabled(), gc.get_freeze_count()
import collector
assert threading.active_count() == 1
assert signals == [signal.getsignal(number) for number in signal.valid_signals()]
assert (handlers, level, interval) == (logging.root.handlers, logging.root.level, sys.getswitchinterval())
assert collecting == (gc.get_threshold(), gc.isenabled(), gc.get_freeze_count())
print(*sorted({"aiohttp", "asyncio", "click", "sqlite3", "structlog"} & sys.modules.keys()))
"""


def test_importing_the_package_starts_nothing_sets_nothing_and_leaves_the_heavy_modules_alone() -> None:
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")
