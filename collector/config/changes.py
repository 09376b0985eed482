"""What a new configuration means for a collector that runs with another one (pure)."""

from typing import get_type_hints

import msgspec

from collector.config.load import keys
from collector.config.model import Config

WAY_OUT = frozenset({"upstream", "forward", "gateway"})
"""Sections that stand together: who delivers to one place cannot use the credentials for another one."""


class Changes(msgspec.Struct, frozen=True):
    """`config` is what can be in force at once; keys are named as `section.key`, and no value is."""

    config: Config
    in_force: tuple[str, ...]
    need_restart: tuple[str, ...]


def changes(running: Config, wanted: Config) -> Changes:
    """What of `wanted` a collector that runs with `running` can take over, and what it keeps until a restart.

    Where `forward.url` has changed it keeps its whole way out, and goes on delivering as it does.
    """
    changed = [key for key in keys() if _value(running, key.section, key.name) != _value(wanted, key.section, key.name)]
    kept_sections = WAY_OUT if running.forward.url != wanted.forward.url else frozenset()
    kept = [key for key in changed if key.needs_restart or key.section in kept_sections]
    sections = {
        section: msgspec.structs.replace(
            getattr(wanted, section),
            **{key.name: _value(running, section, key.name) for key in kept if key.section == section},
        )
        for section in get_type_hints(Config)
    }
    return Changes(
        Config(**sections),
        tuple(key.dotted for key in changed if key not in kept),
        tuple(key.dotted for key in kept),
    )


def _value(config: Config, section: str, name: str) -> object:
    return getattr(getattr(config, section), name)
