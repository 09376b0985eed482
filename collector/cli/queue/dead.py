"""`collector queue dead …`: what upstream refused for good, and what a person does about it."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec

from collector.cli.options import TextType, TimeType, config_option, plain
from collector.cli.queue.export import OUTPUT, write_lines
from collector.config import load
from collector.errors import Unusable
from collector.observe.logs import without_addresses
from collector.queue.backend import by_hand
from collector.queue.by_hand import ANY_NUMBER, FOREVER_MS, ByHand, Choice, Entry


@click.group("dead", short_help="Dead letters: events that upstream refused for good.")
def command() -> None:
    """Dead letters: events that upstream refused for good, each with the reason.

    They stay until a person acts. Above queue.max_dead_bytes nothing more is buried: apps with refused events are held.
    """


def choosing(function: Callable[..., None]) -> Callable[..., None]:
    """Adds the options that say which dead letters are meant, and the one for the configuration."""
    for option in (
        click.option("--until", type=TimeType(), default=FOREVER_MS, help="Buried before: ISO 8601 (UTC), or -12h."),
        click.option("--since", type=TimeType(), default=0, help="Buried at or after: ISO 8601 (UTC), or -7d."),
        click.option("--reason", type=TextType(), help="Only those whose reason contains this text."),
        click.option("--app", "app_id", type=TextType(), help="Only those of this app."),
        config_option,
    ):
        function = option(function)
    return function


@command.command("list", short_help="Number, burial, app and reason of each.")
@choosing
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="Most letters shown.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_letters(config_file: Path | None, limit: int, as_json: bool, **chosen: Any) -> None:
    """Number, burial, app and reason of each, oldest first; no address of a person."""
    choice = _choice(chosen)
    with _queue(config_file) as queue:
        total = queue.count_dead(choice)
        for number, letter in enumerate(queue.dead(choice)):
            if number == limit:
                click.echo(f"{total - limit:,} more; see --limit", err=True)
                break
            row = _row(letter) | {"reason": without_addresses(letter.reason or "")}
            click.echo(msgspec.json.encode(row) if as_json else plain("  ".join(map(str, row.values()))))
    if not as_json:
        click.echo(f"{total:,} dead letters")


@command.command("show", short_help="Everything about dead letter NUMBER, as JSON.")
@config_option
@click.argument("number", type=click.IntRange(1))
def show(config_file: Path | None, number: int) -> None:
    """Everything about dead letter NUMBER, as JSON, with the event as upstream got it."""
    with _queue(config_file) as queue:
        for letter in queue.dead(Choice(number=min(number, ANY_NUMBER))):
            text = msgspec.json.encode(_row(letter) | {"event": msgspec.Raw(letter.lines)})
            click.echo(msgspec.json.format(text, indent=2))
            return
    raise Unusable(f"there is no dead letter {number}; see collector queue dead list")


@command.command("retry", short_help="Put dead letters back to wait.")
@choosing
@click.option("--number", type=click.IntRange(1), help="Only this one.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def retry(config_file: Path | None, as_json: bool, **chosen: Any) -> None:
    """Put dead letters back to wait; a running daemon sends them within a second or two."""
    with _queue(config_file, for_writing=True) as queue:
        _say(queue.retry(_choice(chosen)), "dead letters wait again", "retried", as_json=as_json)


@command.command("export", short_help="Write dead letters as NDJSON.")
@choosing
@OUTPUT
def export(config_file: Path | None, output: str, **chosen: Any) -> None:
    """Write dead letters as NDJSON, each event with appId, reason and buriedAt."""
    with _queue(config_file) as queue:
        write_lines(queue.dead(_choice(chosen)), output)


@command.command("purge")
@choosing
@click.option("--number", type=click.IntRange(1), help="Only this one.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object; needs --yes.")
def purge(config_file: Path | None, yes: bool, as_json: bool, **chosen: Any) -> None:
    """Delete dead letters for good.

    What becomes one while it asks is not meant, and stays.
    """
    if as_json and not yes:
        raise click.UsageError("--json needs --yes: there is nobody to ask")
    with _queue(config_file, for_writing=True) as queue:
        choice = _choice(chosen)._replace(last=queue.newest_dead())
        count = queue.count_dead(choice)
        if count and not yes and not click.confirm(f"Delete {count:,} dead letters for good?", err=True):
            click.echo("nothing was deleted")
            sys.exit(1)
        _say(queue.purge(choice), "dead letters are deleted", "purged", as_json=as_json)


def _queue(config_file: Path | None, *, for_writing: bool = False) -> ByHand:
    return by_hand(load(config_file, with_credentials=False), for_writing=for_writing)


def _choice(chosen: dict[str, Any]) -> Choice:
    number = chosen.get("number")
    choice = Choice(chosen["app_id"], chosen["reason"], chosen["since"], chosen["until"])
    return choice if number is None else choice._replace(number=min(number, ANY_NUMBER))


def _row(letter: Entry) -> dict[str, Any]:
    return {"number": letter.number, "buriedAt": letter.when, "appId": letter.app_id, "reason": letter.reason}


def _say(count: int, words: str, name: str, *, as_json: bool) -> None:
    click.echo(msgspec.json.encode({name: count}) if as_json else f"{count:,} {words}")
