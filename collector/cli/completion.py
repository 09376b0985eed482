"""`collector completion`: what a shell needs to complete this command line."""

import click
from click.shell_completion import get_completion_class


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print what makes SHELL complete commands and options.

    \b
    bash:  collector completion bash > ~/.local/share/bash-completion/completions/collector
    zsh:   collector completion zsh > "${fpath[1]}/_collector"
    fish:  collector completion fish > ~/.config/fish/completions/collector.fish
    """  # noqa: D301 - click keeps the lines after \b as they are
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - click has all three
    click.echo(kind(ctx.find_root().command, {}, "collector", "_COLLECTOR_COMPLETE").source())
