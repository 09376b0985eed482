"""The commented example configuration, written from the model so that it cannot drift from it."""

import textwrap
from collections.abc import Mapping
from itertools import groupby
from typing import get_type_hints

from collector.config.load import ENVIRONMENT_PREFIX, keys
from collector.config.model import Config

WIDTH = 110
HEADER = f"""\
# The collector's configuration: every key with its default. A key that is commented out has no default.
# The environment wins over this file: [queue] path is {ENVIRONMENT_PREFIX}QUEUE__PATH there, and so on.
# `collector check-config --config FILE` lists every problem at once.
# SIGHUP reads the file again: a change is in force at once, but for keys that are said to need a restart.
"""


def example_toml(instead: Mapping[str, object] | None = None) -> str:
    """TOML that loads to the defaults, each key with what it is for and what it allows.

    `instead` has other values, by dotted key, such as `queue.path`.
    """
    instead = instead or {}
    sections = get_type_hints(Config)
    parts = [HEADER]
    for section, members in groupby(keys(), key=lambda key: key.section):
        parts.append(f"\n# {sections[section].__doc__}\n[{section}]\n")
        for key in members:
            parts += [_comment(key.kind.about), _comment(f"Allowed: {key.kind.allowed}.")]
            if key.needs_restart:
                parts.append(_comment("A change needs a restart."))
            value = instead.get(key.dotted, key.default)
            parts.append(f'# {key.name} = "…"\n' if value is None else f"{key.name} = {key.kind.write(value)}\n")
    return "".join(parts)


def _comment(text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent="# ", subsequent_indent="#   ") + "\n"
