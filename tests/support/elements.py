"""What a page of HTML is made of, as its file has it."""

import base64
import hashlib
from html.parser import HTMLParser


class Elements(HTMLParser):
    """Every element as (name, attributes), and the text within each script and style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inline: dict[str, list[str]] = {"script": [], "style": []}
        self.within = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.within = tag

    def handle_endtag(self, tag):
        self.within = ""

    def handle_data(self, data):
        if self.within in self.inline:
            self.inline[self.within].append(data)

    def policy(self) -> dict[str, list[str]]:
        """The sources that the page's own Content-Security-Policy allows, by directive."""
        meta = next(a for _, a in self.found if a.get("http-equiv") == "Content-Security-Policy")
        return {name: sources for name, *sources in (part.split() for part in (meta["content"] or "").split(";"))}


def hash_of(inline: str) -> str:
    """The source that lets a script or style of this text run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()}'"
