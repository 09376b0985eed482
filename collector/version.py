"""The version, in one place: the build reads it from here, `collector --version` and the User-Agent say it."""

__version__ = "0.1.0"
