"""What `--help` says."""

from collections.abc import Iterator

import click
from click.testing import CliRunner

from collector.cli import main


def groups(words: tuple[str, ...], command: click.Command) -> Iterator[tuple[str, ...]]:
    """The words that call it, and each group below it."""
    if isinstance(command, click.Group):
        yield words
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from groups((*words, name), found)


def test_no_list_of_commands_cuts_what_it_says_of_one() -> None:
    helps = [CliRunner().invoke(main, [*words, "--help"]).output for words in groups((), main)]
    listed = [text.partition("\nCommands:\n")[2] for text in helps]
    assert len(listed) > 5
    assert [line for text in listed for line in text.splitlines() if line.endswith("...")] == []
