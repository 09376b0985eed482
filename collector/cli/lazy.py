"""A group whose commands are imported when they are called: each brings libraries that the others need not wait for."""

import contextlib
import gc
import importlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import click

WITHOUT_RICH = {"collector.cli.run"}
"""structlog takes rich in where it finds it, a sixth of the daemon's start, for tracebacks that no log of ours has."""


class LazyGroup(click.Group):
    """`modules` maps a command's name to the module that holds it as `command`, and to its line in the help."""

    def __init__(self, *args: Any, modules: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names."""
        return sorted(self._modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now."""
        if cmd_name not in self._modules:
            return None
        module, about = self._modules[cmd_name]
        command: click.Command = _imported(module).command
        command.short_help = about  # for a shell's completion
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The help's list, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in sorted(self._modules.items())])


def _imported(name: str) -> Any:
    """The module. What an import makes stays: looking through it for garbage took a sixth of the daemon's start."""
    if name in sys.modules:
        return sys.modules[name]
    gc.disable()
    try:
        with _hidden("rich") if name in WITHOUT_RICH else contextlib.nullcontext():
            return importlib.import_module(name)
    finally:
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def _hidden(name: str) -> Iterator[None]:
    """Who imports the module finds that it is not there; one that was imported before is there again afterwards."""
    there = {} if name not in sys.modules else {name: sys.modules[name]}
    sys.modules[name] = None  # type: ignore[assignment]  # importing it raises then
    try:
        yield
    finally:
        del sys.modules[name]
        sys.modules.update(there)
