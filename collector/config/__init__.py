"""Settings: `Config` holds them, `load` reads them from a file and the environment."""

from collector.config.load import load
from collector.config.model import Config

__all__ = ["Config", "load"]
