"""Configuration from a TOML file and the environment, in one pass that finds every problem at once.

Order, later wins: defaults, file, environment (`COLLECTOR_<SECTION>__<KEY>`). The client secret comes from its key,
else from `client_secret_file`, else from systemd's credentials directory.
"""

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

import msgspec

from collector.config.kinds import Kind, Refused, Secret
from collector.config.model import Config, Upstream
from collector.config.tokens import read_tokens
from collector.errors import ConfigInvalid

ENVIRONMENT_PREFIX = "COLLECTOR_"
SECRET_CREDENTIAL = "client_secret"  # noqa: S105 - the name of a file


class Problem(NamedTuple):
    """One thing wrong with the configuration: the key, what stands there (never a secret), what would be right."""

    key: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.key}: {self.found}" + (f"; {self.remedy}" if self.remedy else "")


class Key(NamedTuple):
    """One setting: its section and name, how it is read, and its default."""

    section: str
    name: str
    kind: Kind
    default: Any

    @property
    def dotted(self) -> str:
        """The name people use: `queue.path`."""
        return f"{self.section}.{self.name}"

    @property
    def variable(self) -> str:
        """The environment's name: `COLLECTOR_QUEUE__PATH`."""
        return f"{ENVIRONMENT_PREFIX}{self.section}__{self.name}".upper()


def keys() -> list[Key]:
    """Every setting, in the order of the model."""
    found = []
    for section, section_type in get_type_hints(Config).items():
        hints = get_type_hints(section_type, include_extras=True)
        defaults = section_type()
        for name, hint in hints.items():
            assert get_origin(hint) is Annotated, f"{section}.{name} has no kind"  # noqa: S101 - a slip in the model
            found.append(Key(section, name, get_args(hint)[1], getattr(defaults, name)))
    return found


def load(
    file: Path | None = None, environment: Mapping[str, str] | None = None, *, with_credentials: bool = True
) -> Config:
    """The configuration of `file` (none: defaults only) under that of `environment` (default: the process's own).

    Who only looks at a queue, or sends to a collector, can do without credentials. Raises ConfigInvalid with every
    problem, one a line.
    """
    environment = os.environ if environment is None else environment
    known = {key.dotted: key for key in keys()}
    problems: list[Problem] = []
    raw = _from_file(file, known, problems) | _from_environment(environment, known, problems)

    values: dict[str, Any] = {}
    for dotted, value in raw.items():
        kind = known[dotted].kind
        try:
            values[dotted] = kind.parse(value)
        except Refused as refused:
            problems.append(Problem(dotted, str(refused), f"allowed: {kind.allowed}"))
        except (ValueError, TypeError, OverflowError):
            shown = "(not shown)" if dotted in {"upstream.client_secret", "jetstream.password"} else repr(value)
            problems.append(Problem(dotted, shown, f"allowed: {kind.allowed}"))

    sections = {
        section: section_type(
            **{key.name: values[dotted] for dotted, key in known.items() if key.section == section and dotted in values}
        )
        for section, section_type in get_type_hints(Config).items()
    }
    config = Config(**sections)
    if with_credentials:
        upstream = _with_secret(config.upstream, environment, problems)
        if upstream.client_id is None and not _named("upstream.client_id", problems):
            problems.append(Problem("upstream.client_id", "missing", "give the OAuth2 client ID that Productiv issued"))
        config = msgspec.structs.replace(config, upstream=upstream)
        problems += [*_open_doors(config), *_at_odds(config)]
    if problems:
        raise ConfigInvalid("\n".join(map(str, problems)))
    return config


def _at_odds(config: Config) -> list[Problem]:
    """Settings that are sound by themselves and do not go together."""
    ours, found = config.jetstream, []
    if config.queue.backend == "jetstream" and config.queue.keep_delivered:
        found.append(Problem("queue.keep_delivered", 'not with queue.backend = "jetstream"', 'allowed there: "0s"'))
    if ours.password is not None and ours.user is None:
        found.append(Problem("jetstream.user", "missing", "jetstream.password needs it"))
    ways = [name for name in ("user", "credentials_file", "nkey_file") if getattr(ours, name) is not None]
    if len(ways) > 1:
        named = " and ".join(f"jetstream.{name}" for name in ways)
        found.append(Problem(f"jetstream.{ways[0]}", f"{named} are given", "allowed: one of them"))
    if ours.key_file is not None and ours.certificate_file is None:
        found.append(Problem("jetstream.certificate_file", "missing", "jetstream.key_file needs it"))
    return found


def _open_doors(config: Config) -> list[Problem]:
    """What is amiss with the ways in: those that any other machine could use, and those that cannot be opened."""
    access = config.access
    found = []
    if access.tokens_file is not None:
        try:
            read_tokens(access.tokens_file)
        except ConfigInvalid as error:
            key, _, rest = str(error).partition(": ")
            found.append(Problem(key, rest))
    for key, listen, remedy in (
        ("http.listen", None if access.tokens_file else config.http.listen, "give access.tokens_file, or set "),
        ("udp.listen", config.udp.listen, "datagrams carry no token; set "),
    ):
        if listen is not None and not listen.is_loopback and not access.allow_unauthenticated:
            reach = f"{str(listen)!r} can be reached from other machines"
            found.append(Problem(key, reach, f"{remedy}access.allow_unauthenticated = true"))
    if config.unix.stream is not None and config.unix.stream == config.unix.datagram:
        found.append(
            Problem("unix.datagram", repr(str(config.unix.datagram)), "allowed: another file than unix.stream")
        )
    return found


def _from_file(file: Path | None, known: Mapping[str, Key], problems: list[Problem]) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        problems.append(Problem(str(file), f"cannot be read ({error.strerror})"))
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        problems.append(Problem(str(file), f"is not TOML: {error}"))
        return {}
    sections = {key.section for key in known.values()}
    found: dict[str, Any] = {}
    for section, content in document.items():
        if section in sections and isinstance(content, dict):
            for name, value in content.items():
                dotted = f"{section}.{name}"
                if dotted in known:
                    found[dotted] = value
                else:
                    problems.append(_unknown(dotted, known))
        elif section in sections:
            problems.append(Problem(section, f"a {type(content).__name__}", f"allowed: a section, [{section}]"))
        else:
            problems.append(_unknown(section, sections))
    return found


def _from_environment(
    environment: Mapping[str, str], known: Mapping[str, Key], problems: list[Problem]
) -> dict[str, Any]:
    """Values of `COLLECTOR_…` variables.

    One with two underscores, or nearly a key's name, must be a key's name; others are left alone, since orchestrators
    set names such as COLLECTOR_PORT of their own.
    """
    variables = {key.variable: dotted for dotted, key in known.items()}
    found: dict[str, Any] = {}
    for name, value in environment.items():
        if name in variables:
            found[variables[name]] = value
        elif name.startswith(ENVIRONMENT_PREFIX) and (
            "__" in name or difflib.get_close_matches(name, variables, 1, 0.9)
        ):
            problems.append(_unknown(name, variables))
    return found


def _with_secret(upstream: Upstream, environment: Mapping[str, str], problems: list[Problem]) -> Upstream:
    if upstream.client_secret is not None:
        return upstream
    file, key = upstream.client_secret_file, "upstream.client_secret_file"
    directory = environment.get("CREDENTIALS_DIRECTORY")
    if file is None and directory:
        file, key = Path(directory, SECRET_CREDENTIAL), f"systemd credential {SECRET_CREDENTIAL}"
    if file is None or (key.startswith("systemd") and not file.exists()):
        if not _named("upstream.client_secret", problems):
            problems.append(
                Problem(
                    "upstream.client_secret",
                    "missing",
                    "give it here, in client_secret_file, or as a systemd credential",
                )
            )
        return upstream
    try:
        content = file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8, or NUL in its name"
        problems.append(Problem(key, f"{str(file)!r} cannot be read ({reason})", "allowed: a readable file"))
        return upstream
    if not content:
        problems.append(Problem(key, f"{str(file)!r} is empty", "allowed: a file that holds the secret"))
    return msgspec.structs.replace(upstream, client_secret=Secret(content))


def _named(dotted: str, problems: list[Problem]) -> bool:
    return any(problem.key == dotted for problem in problems)


def _unknown(name: str, known: Mapping[str, Any] | set[str]) -> Problem:
    nearest = difflib.get_close_matches(name, list(known), 1, 0.4)
    return Problem(name, "unknown", f"did you mean {nearest[0]}?" if nearest else "see config.example.toml")
