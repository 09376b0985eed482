"""`collector api upload`."""

from collections.abc import Sequence
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from collector.cli.api.change import app_argument, call, change, dry_run_option
from collector.cli.api.output import format_option, write_one, write_rows
from collector.cli.options import config_option
from collector.config import load
from collector.config.kinds import is_sendable
from collector.contract.operations import GET_BATCH_UPLOAD_URLS
from collector.upstream.client import Client, upload_queries


class Uploaded(msgspec.Struct, frozen=True):
    """A file that is upstream."""

    filename: str
    bytes: int


@click.command("upload")
@config_option
@format_option
@dry_run_option
@app_argument
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)
)
def command(
    config_file: Path | None, output_format: str | None, dry_run: bool, app_id: str, files: Sequence[Path]
) -> None:
    """Upload FILES for APP, each under its own name, one after the other (getBatchUploadUrls, then a PUT each).

    Where one fails, the message names it; those before it are upstream. Run the same command again to go on.
    """
    names = [file.name for file in files]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise click.UsageError(f"Two files are called {min(repeated)!r}; upstream tells them apart by name only.")
    if wrong := [name for name in names if not is_sendable(name)]:
        raise click.UsageError(f"The name {wrong[0]!r} is not UTF-8; upstream tells files apart by their names.")
    if wrong_files := [file for file in files if not file.is_file()]:
        raise click.UsageError(f"{str(wrong_files[0])!r} is not a regular file.")
    upstream = load(config_file, with_credentials=not dry_run).upstream
    if dry_run:
        asked = change(
            GET_BATCH_UPLOAD_URLS,
            upstream,
            {"appId": app_id},
            records=len(files),
            dry_run=True,
            requests=len(list(upload_queries(names))),
        )
        write_one(asked, output_format)
        return
    sizes = {file: file.stat().st_size for file in files}
    call(upstream, lambda client: _upload(client, app_id, sizes))
    write_rows([Uploaded(file.name, size) for file, size in sizes.items()], Uploaded, output_format)


async def _upload(client: Client, app_id: str, sizes: dict[Path, int]) -> None:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks = {file: bars.add_task(file.name, total=size) for file, size in sizes.items()}
        await client.upload(app_id, list(sizes), lambda file, sent: bars.update(tasks[file], completed=sent))
