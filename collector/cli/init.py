"""`collector init`: a commented configuration, and the systemd units."""

import os
from pathlib import Path
from typing import NamedTuple

import click

from collector.cli.units import ALL_IN_ONE, SPLIT, is_hidden, own_command, unit
from collector.config.example import example_toml
from collector.errors import Unusable

HERE = Path("collector.toml")
SYSTEM_CONFIG = Path("/etc/collector/config.toml")
SYSTEM_UNITS = Path("/etc/systemd/system")
SYSTEM_QUEUE = Path("/var/lib/collector")
"""The units' StateDirectory, so that commands by hand look where the daemon writes."""


class Step(NamedTuple):
    """One file to write; `before` is what stands there."""

    file: Path
    text: str
    mode: int
    before: str | None

    @property
    def what(self) -> str:
        """In words, what is done to the file."""
        if self.before is None:
            return "write"
        return "keep" if self.before == self.text else "replace"


@click.command("init")
@click.argument("path", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--systemd", is_flag=True, help="Install the systemd units too; the configuration is theirs.")
@click.option("--split", is_flag=True, help="With --systemd: receiving and delivering in two processes.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--root",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("/"),
    help="With --systemd: a directory that stands for / (to build an image or a package).",
)
def command(path: Path | None, systemd: bool, split: bool, dry_run: bool, yes: bool, root: Path) -> None:
    """Write a configuration with every key, its default and what it is for.

    Without --systemd it goes to PATH (default: collector.toml; "-" is standard output), with it to
    /etc/collector/config.toml. A configuration that is there is never replaced. Units that are there are, after they
    were shown.

    \b
    collector init                                      a file to edit
    sudo /opt/collector/bin/collector init --systemd    a daemon that starts with the machine
    """  # noqa: D301 - click keeps the lines after \b as they are
    if split and not systemd:
        raise click.UsageError("--split goes with --systemd.")
    if not systemd:
        _write_config(path or HERE, dry_run=dry_run)
        return
    if path is not None:
        raise click.UsageError("with --systemd the configuration goes to /etc/collector/config.toml; leave PATH out.")
    steps = _steps(root, SPLIT if split else ALL_IN_ONE)
    for step in steps:
        click.echo(f"{step.what:<8}{step.file}")
    if dry_run:
        click.echo("Nothing was done.")
        return
    if any(step.what != "keep" for step in steps):
        if not yes:
            click.confirm("Do this?", abort=True)
        for step in steps:
            if step.what != "keep":
                _write(step.file, step.text, step.mode)
    click.echo(_next_steps(split=split))


def _write_config(file: Path, *, dry_run: bool) -> None:
    if file == Path("-"):
        click.echo(example_toml(), nl=False)
        return
    if os.path.lexists(file):
        raise Unusable(f"{file} is there already and was left as it is; name another file, or move it away")
    if dry_run:
        click.echo(f"write   {file}\nNothing was done.")
        return
    _write(file, example_toml(), 0o640)
    click.echo(
        f"{file} has every key with its default. Next:\n"
        f"  1. set upstream.client_id there, and the secret in upstream.client_secret_file or the environment\n"
        f"  2. collector check-config --config {file}\n"
        f"  3. collector run --config {file}"
    )


def _steps(root: Path, names: tuple[str, ...]) -> list[Step]:
    """All files, the configuration first. Raises Unusable where the units could not start this collector."""
    program = own_command()
    if is_hidden(program):
        raise Unusable(
            f"{program} is where a systemd unit may not look (home directories and /tmp); install the package "
            "elsewhere: python3 -m venv /opt/collector && /opt/collector/bin/pip install usage-collector"
        )
    config = _below(root, SYSTEM_CONFIG)
    there = _text(config)
    text = example_toml({"queue.path": SYSTEM_QUEUE}) if there is None else there
    steps = [Step(config, text, 0o644, there)]
    for name in names:
        file = _below(root, SYSTEM_UNITS / name)
        steps.append(Step(file, unit(name, command=program), 0o644, _text(file)))
    return steps


def _next_steps(*, split: bool) -> str:
    sockets, services = ("collector-ingest", "collector-ingest collector-flush") if split else ("collector",) * 2
    units = " ".join([f"{sockets}.socket", *(f"{name}.service" for name in services.split())])
    program = own_command()
    return (
        f"Next:\n"
        f"  1. set upstream.client_id in {SYSTEM_CONFIG}\n"
        f"  2. put the client secret, alone, into /etc/collector/client_secret, readable for root only:\n"
        f"     (umask 077; cat > /etc/collector/client_secret)\n"
        f"  3. {program} check-config --without-credentials --config {SYSTEM_CONFIG}\n"
        f"  4. systemctl daemon-reload && systemctl enable --now {units}\n"
        f"  5. {program} status --config {SYSTEM_CONFIG}"
    )


def _below(root: Path, file: Path) -> Path:
    return root / file.relative_to("/")


def _text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Unusable(f"{file} cannot be read: {error}") from None


def _write(file: Path, text: str, mode: int) -> None:
    """The file holds the text, whole or not at all. Raises Unusable."""
    new = file.with_name(file.name + ".new")
    try:
        file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        new.write_text(text, encoding="utf-8")
        new.chmod(mode)
        new.rename(file)
    except OSError as error:
        raise Unusable(f"{file} cannot be written: {error.strerror}") from None
