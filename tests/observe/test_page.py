"""The page is one document whose policy lets it do no more than it does."""

import base64
import hashlib
import re
from html.parser import HTMLParser

from collector.observe.page import Page

PAGE = Page.read()
HTML = PAGE.content.decode()


class Elements(HTMLParser):
    """Every start tag with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(HTML)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def between(tag: str) -> str:
    [content] = re.findall(rf"<{tag}>(.*?)</{tag}>", HTML, re.DOTALL)
    return str(content)


def test_the_policy_knows_style_and_script_by_their_hashes_and_allows_nothing_else() -> None:
    def source(tag: str) -> str:
        return base64.b64encode(hashlib.sha256(between(tag).encode()).digest()).decode()

    policy = dict(part.split(" ", 1) for part in PAGE.policy.split("; "))
    assert policy == {
        "default-src": "'none'",
        "style-src": f"'sha256-{source('style')}'",
        "script-src": f"'sha256-{source('script')}'",
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert len(between("style")) > 1000 < len(between("script"))


def test_nothing_is_loaded_from_anywhere_and_no_attribute_holds_code_or_style() -> None:
    for tag, attributes in Elements().found:
        assert tag not in {"iframe", "img", "object", "form"}
        assert "src" not in attributes
        assert attributes.get("href") in {None, "data:,", "status.json", "metrics"}
        assert not any(name.startswith("on") or name == "style" for name in attributes)
    assert "url(" not in between("style")
    assert "@import" not in between("style")


def test_the_script_writes_text_and_never_markup() -> None:
    script = between("script")
    assert not re.search(r"\.(?:inner|outer)HTML\s*\+?=[^=]", script)
    for way in ("insertAdjacentHTML", "document.write", "eval(", "new Function", 'setAttribute("style"'):
        assert way not in script


def test_the_entity_tag_is_the_contents() -> None:
    assert PAGE.etag == f'"{hashlib.sha256(PAGE.content).hexdigest()[:32]}"'
    assert "/* page." not in HTML
