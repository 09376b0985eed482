"""The status page: one self-contained document, whose style and script a strict policy knows by their hashes."""

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
        policy = {
            "default-src": "'none'",
            "style-src": _source(style),
            "script-src": _source(script),
            "connect-src": "'self'",
            "img-src": "data:",
            "base-uri": "'none'",
            "form-action": "'none'",
            "frame-ancestors": "'none'",
        }
        etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        return cls(content, etag, "; ".join(f"{name} {source}" for name, source in policy.items()))


def _text(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
