"""The status page, and what any page of ours may do: its style and script are known by their hashes."""

import base64
import hashlib
from importlib import resources

import msgspec


class Page(msgspec.Struct, frozen=True):
    """The page as bytes, its entity tag, and its Content-Security-Policy."""

    content: bytes
    etag: str
    policy: str

    @classmethod
    def read(cls) -> "Page":
        """The page of this version, put together from its three files."""
        html, style, script = (_text(f"page.{kind}") for kind in ("html", "css", "js"))
        content = html.replace("/* page.css */", style).replace("/* page.js */", script).encode()
        etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        return cls(content, etag, policy(style, script))


def policy(style: str, script: str) -> str:
    """The Content-Security-Policy of a page that fetches what it shows from where it comes from, and nothing else."""
    return (
        f"default-src 'none'; style-src {_source(style)}; script-src {_source(script)}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _text(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
