"""What is imported for a command, and what is not."""

import subprocess
import sys

PROGRAM = """
import sys

from collector.cli import main

main.get_command(None, "run")
assert "structlog" in sys.modules
assert "rich" not in sys.modules, "the daemon shows nothing with it"
main.get_command(None, "push")
import rich.progress
"""


def test_the_daemon_starts_without_rich_and_what_is_imported_later_has_it() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)
