"""One form for the URLs that name one page."""

import re
from urllib.parse import quote, urlsplit

# Parameters that say where a visitor came from, never what the page is: the campaign and click marks of Google, Meta,
# Microsoft, Yandex, Mailchimp and HubSpot.
TRACKING = re.compile(r"utm_\w+|gclid|dclid|gbraid|wbraid|fbclid|igshid|msclkid|yclid|mc_[ce]id|_hsenc|_hsmi")
DEFAULT_PORTS = (None, 80, 443)
ESCAPED_OR_TO_BE = re.compile(r"%[0-9A-Fa-f]{2}|[^!-~]")
UNRESERVED = re.compile(r"[A-Za-z0-9._~-]")  # RFC 3986, 2.3


def normalize_url(url: str) -> str:
    """The URL without what seldom changes the page.

    Gone are the scheme http or https, a leading "www.", a final dot of the host, its capitals, the default port, the
    fragment, slashes at the end of the path, the parameters of TRACKING and an empty query. Escapes are written in one
    way (RFC 3986, 6.2.2): in capitals, and only where a character needs one. The order of parameters stays, since some
    servers heed it. What does not parse as a web address is compared as it stands.
    """
    url = url.strip()
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return url
    if parts.scheme not in ("http", "https") or not host:
        return url
    host = host.rstrip(".").removeprefix("www.")
    address = host if port in DEFAULT_PORTS else f"{host}:{port}"
    path = _escape(parts.path).rstrip("/")
    query = "&".join(
        parameter
        for parameter in _escape(parts.query).split("&")
        if parameter and not TRACKING.fullmatch(parameter.partition("=")[0].lower())
    )
    return f"{address}{path}?{query}" if query else f"{address}{path}"


def _escape(text: str) -> str:
    return ESCAPED_OR_TO_BE.sub(_one_way, text)


def _one_way(match: re.Match[str]) -> str:
    found = match[0]
    if len(found) == 1:
        return quote(found)
    character = chr(int(found[1:], 16))
    return character if UNRESERVED.match(character) else found.upper()
