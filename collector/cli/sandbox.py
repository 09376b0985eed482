"""`collector sandbox`: the upstream to try things out with."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from collector.cli.loop import run, stop_signals
from collector.cli.options import AddressType
from collector.config.kinds import Address
from collector.contract.models import EXPORT_REQUESTS_PER_SECOND
from collector.errors import Unusable, why_unbound
from collector.sandbox.faults import Fault, read_faults
from collector.sandbox.seed import Seed, read_seed
from collector.sandbox.server import CLIENT_ID, CLIENT_SECRET, Sandbox
from collector.sandbox.state import State

Content = TypeVar("Content")


@click.command("sandbox")
@click.option(
    "--listen",
    type=AddressType(),
    default="127.0.0.1:8788",
    show_default=True,
    help="Where to listen; port 0 takes a free one.",
)
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory to keep what was received in; without it, memory.",
)
@click.option("--create-apps", is_flag=True, help="Make an app when it is first used, instead of refusing it.")
@click.option(
    "--token-lifetime",
    type=click.IntRange(1, 86_400),
    default=3600,
    show_default=True,
    help="Seconds until a token expires.",
)
@click.option(
    "--faults",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help='Script of failures: JSON, {"faults": [...]}.',
)
@click.option(
    "--seed",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What is there from the start: JSON, apps, workflows, audit events.",
)
@click.option(
    "--export-limit",
    type=click.IntRange(0, 1_000_000),
    default=EXPORT_REQUESTS_PER_SECOND,
    show_default=True,
    help="Export requests taken within any second; 0 takes all.",
)
def command(
    listen: Address,
    data: Path | None,
    create_apps: bool,
    token_lifetime: int,
    faults: Path | None,
    seed: Path | None,
    export_limit: int,
) -> None:
    """Run a local server of the Productiv Developer API, for trying things out.

    API and token endpoint share one port; client ID and secret are "sandbox". GET / shows in a browser what it does,
    GET /_sandbox/stats says what it got, POST /_sandbox/faults makes it fail, POST /_sandbox/reset empties it.
    """
    script = _read(faults, read_faults) or []
    run(_serve(listen, data, create_apps, token_lifetime, script, _read(seed, read_seed), export_limit))


def _read(file: Path | None, read: Callable[[bytes], Content]) -> Content | None:
    try:
        return read(file.read_bytes()) if file else None
    except ValueError as error:
        raise Unusable(f"{file}: {error}") from None


async def _serve(
    listen: Address,
    data: Path | None,
    create_apps: bool,
    token_lifetime: int,
    faults: list[Fault],
    seed: Seed | None,
    export_limit: int,
) -> None:
    stop_asked = stop_signals()
    state = await State.open(data)
    try:
        sandbox = Sandbox(
            state,
            create_apps=create_apps,
            token_lifetime_seconds=token_lifetime,
            faults=faults,
            export_limit=export_limit,
            seed=seed,
        )
        try:
            await sandbox.start(listen.host, listen.port)
        except OSError as error:
            raise Unusable(f"--listen: cannot listen on {listen}: {why_unbound(error)}") from error
        click.echo(f"sandbox listens on {sandbox.url}  client_id={CLIENT_ID} client_secret={CLIENT_SECRET}")
        await stop_asked.wait()
        stats = await sandbox.stats()
        await sandbox.stop()
        click.echo(f"sandbox received {stats.received} events, {stats.distinct} distinct, in {stats.requests} requests")
    finally:
        await state.close()
