"""Configuration from a TOML file and the environment, in one pass that finds every problem at once.

Order, later wins: defaults, file, environment (`COLLECTOR_<SECTION>__<KEY>`). A secret (upstream's client secret, the
token for a central collector) comes from its key, else from the file that another key names, else from systemd's
credentials directory, where the tokens of those who may send can be as well.
"""

import contextlib
import difflib
import errno
import os
import tomllib
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

import msgspec

from collector.config import rules
from collector.config.kinds import Kind, Refused, Secret
from collector.config.model import NEEDS_RESTART, Access, Config
from collector.config.rules import Problem
from collector.errors import ConfigInvalid

ENVIRONMENT_PREFIX = "COLLECTOR_"
SECRET_CREDENTIAL = "client_secret"  # noqa: S105 - the name of a file
TOKEN_CREDENTIAL = "forward_token"  # noqa: S105 - the name of a file
_PLACES_OF_SECRET = {
    "upstream.client_secret",
    "upstream.client_secret_file",
    f"systemd credential {SECRET_CREDENTIAL}",
}
TOKENS_CREDENTIAL = "ingest_tokens"
NO_TOKENS = b"none"
"""A credential that must be there, as a unit cannot leave it out, can be this word."""


class Key(NamedTuple):
    """One setting: its section and name, how it is read, its default, and whether a reload leaves it as it was."""

    section: str
    name: str
    kind: Kind
    default: Any
    needs_restart: bool

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
            _, kind, *marks = get_args(hint)
            found.append(Key(section, name, kind, getattr(defaults, name), NEEDS_RESTART in marks))
    return found


def load(
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    *,
    with_credentials: bool = True,
    with_listeners: bool | None = None,
) -> Config:
    """The configuration of `file` (none: defaults only) under that of `environment` (default: the process's own).

    Who only looks at a queue, or sends to a collector, can do without credentials, and what only listeners need is not
    looked at then either, unless they are asked for. Raises ConfigInvalid with every problem, one a line.
    """
    environment = os.environ if environment is None else environment
    known = {key.dotted: key for key in keys()}
    problems: list[Problem] = []
    from_environment = _from_environment(environment, known, problems)
    from_file = _from_file(file, known, problems)

    values: dict[str, Any] = {}
    for dotted, value in ((from_file or {}) | from_environment).items():
        kind = known[dotted].kind
        origin = f"; it was set by {known[dotted].variable}" if dotted in from_environment else ""
        try:
            values[dotted] = kind.parse(value)
        except (ValueError, TypeError, OverflowError) as error:
            shown = str(error) if isinstance(error, Refused) else repr(value)
            problems.append(Problem(dotted, shown, f"allowed: {kind.allowed}{origin}"))

    if from_file is None:  # what seems to be missing may be in it
        raise _invalid(problems)

    sections = {
        section: section_type(
            **{key.name: values[dotted] for dotted, key in known.items() if key.section == section and dotted in values}
        )
        for section, section_type in get_type_hints(Config).items()
    }
    config = Config(**sections)
    if with_credentials:
        config = _with_credentials(config, environment, problems)
        problems += [*rules.way_out_problems(config), *rules.queue_problems(config)]
    if with_credentials if with_listeners is None else with_listeners:
        config = msgspec.structs.replace(config, access=_with_tokens(config.access, environment))
        problems += rules.way_in_problems(config)
        if config.gateway.operations and not with_credentials:
            listed = ", ".join(config.gateway.operations)
            problems.append(Problem("gateway.operations", listed, "cannot be passed on without upstream's credentials"))
    if problems:
        raise _invalid(problems)
    return config


def _invalid(problems: list[Problem]) -> ConfigInvalid:
    return ConfigInvalid("\n".join(map(str, problems)))


def _with_credentials(config: Config, environment: Mapping[str, str], problems: list[Problem]) -> Config:
    """The secrets are in it. Who delivers to a central collector can do without upstream's."""
    upstream, forward = config.upstream, config.forward
    secret = _secret(config, "upstream.client_secret", SECRET_CREDENTIAL, environment, problems)
    if forward.url is None:
        if secret is None and not any(problem.key in _PLACES_OF_SECRET for problem in problems):
            remedy = "give it in the environment, client_secret_file or a systemd credential"
            problems.append(Problem("upstream.client_secret", "missing", remedy))
        if upstream.client_id is None and not _named("upstream.client_id", problems):
            problems.append(Problem("upstream.client_id", "missing", "give the OAuth2 client ID that Productiv issued"))
    token = _secret(config, "forward.token", TOKEN_CREDENTIAL, environment, problems)
    if token is not None and not (token.reveal().isascii() and token.reveal().isprintable()):
        problems.append(Problem("forward.token", "(not shown) has characters that no header can carry"))
    return msgspec.structs.replace(
        config,
        upstream=msgspec.structs.replace(upstream, client_secret=secret),
        forward=msgspec.structs.replace(forward, token=token),
    )


def _from_file(file: Path | None, known: Mapping[str, Key], problems: list[Problem]) -> dict[str, Any] | None:
    """Its values; None where it cannot be read."""
    if file is None:
        return {}
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8-sig"))  # some editors put a mark before it
    except OSError as error:
        problems.append(Problem(str(file), f"cannot be read ({error.strerror})"))
        return None
    except (ValueError, RecursionError) as error:
        problems.append(Problem(str(file), f"is not TOML: {error}"))
        return None
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
            kind = type(content)  # and never what it says
            what = {int: "a number", str: "text"}.get(kind, f"a {kind.__name__}")
            problems.append(Problem(section, what, f"allowed: a section, [{section}]"))
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


def _secret(
    config: Config, key: str, credential: str, environment: Mapping[str, str], problems: list[Problem]
) -> Secret | None:
    """A secret from its own key, from the file that `<key>_file` names, or from systemd; None where it is nowhere."""
    own: Secret | None = attrgetter(key)(config)
    if own is not None:
        return own
    key = f"{key}_file"
    file: Path | None = attrgetter(key)(config)
    directory = environment.get("CREDENTIALS_DIRECTORY")
    if file is None and directory:
        key, file = f"systemd credential {credential}", Path(directory, credential)
        if _is_missing(file):
            return None
    if file is None:
        return None
    try:
        content = file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8, or NUL in its name"
        problems.append(Problem(key, f"{str(file)!r} cannot be read ({reason})", "allowed: a readable file"))
        return None
    if not content:
        problems.append(Problem(key, f"{str(file)!r} is empty", "allowed: a file that holds the secret"))
    return Secret(content)


def _with_tokens(access: Access, environment: Mapping[str, str]) -> Access:
    directory = environment.get("CREDENTIALS_DIRECTORY")
    if access.tokens_file is not None or not directory:
        return access
    file = Path(directory, TOKENS_CREDENTIAL)
    with contextlib.suppress(OSError):  # whoever reads the tokens will say it
        if _is_missing(file) or file.read_bytes().strip() == NO_TOKENS:
            return access
    return msgspec.structs.replace(access, tokens_file=file)


def _is_missing(file: Path) -> bool:
    """Whether there certainly is no such file; of one that may not even be looked at, reading it will tell more."""
    try:
        file.stat()
    except OSError as error:
        return error.errno in {errno.ENOENT, errno.ENOTDIR}
    return False


def _named(dotted: str, problems: list[Problem]) -> bool:
    return any(problem.key == dotted for problem in problems)


def _unknown(name: str, known: Mapping[str, Any] | set[str]) -> Problem:
    nearest = difflib.get_close_matches(name, list(known), 1, 0.4)
    return Problem(name, "unknown", f"did you mean {nearest[0]}?" if nearest else "see config.example.toml")
