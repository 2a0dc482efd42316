"""What counts as personal data or a secret, kind by kind, and what looks like it and is left.

Texts are bytes of UTF-8, so a pattern's letters are ASCII: "电话13812345678。" holds a number, and an e-mail address
ends where Chinese begins. Each function looks at one place and says where the thing there begins and ends, or None.
Places that nobody owns stay as they are: example.com, private and documentation addresses, AKIA...EXAMPLE, 555-01xx.
"""

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable

Span = tuple[int, int]

EMAIL = re.compile(
    rb"[A-Za-z0-9_%+][A-Za-z0-9._%+-]{0,63}@"
    rb"((?!\d+\.\d)(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+([A-Za-z]{2,24}))(?![\w(-]|\.\w)"
)
# Of longer endings only those that much mail has, for code has `x@self.weight` and `icon@2x.png`.
LONG_ENDINGS = frozenset(
    (
        "com org net edu gov mil int info biz name pro aero coop museum mobi tel travel jobs cat asia post arpa app "
        "dev xyz online site shop store tech blog cloud email agency art club company consulting design digital "
        "engineering expert foundation fun global group health host international legal life live ltd media network "
        "news one page photography press services social software solutions space studio support systems team today "
        "tools top ventures website wiki work works world zone berlin london nyc paris tokyo"
    ).split()
)
NOBODYS_DOMAINS = re.compile(rb"(?:^|\.)example(?:\.(?:com|org|net|edu))?$|\.(?:test|invalid|local|localhost)$", re.I)

IPV4 = re.compile(rb"\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\w)")
BEFORE_IPV4 = re.compile(rb"[\w.+@-]$|[<>=~!]= ?$|[~^] ?$")  # as in foo-93.184.216.34 and foo>=93.184.216.34
VERSION_WORD = re.compile(
    rb"\b(?:v|ver|version|versions|release|rev|revision|build|firmware|section|chapter|clause|table|figure)\W{0,3}$",
    re.I,
)
# An address whose first three numbers are below this reads as a version or a section; one in 512 is like that.
LEAST_OCTET = 32
HEADING = re.compile(rb"\.?(?: |\xc2\xa0)+[A-Z]")  # "38.17.6.2. Security" at the beginning of a line
MOST_SECTIONS = 100
IPV6 = re.compile(rb"[23][0-9A-Fa-f]{3}:[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{0,4}){1,6}(?![\w:]|\.\d)")

SEPARATED = rb"(?:[ .()/-]{0,2}\d)"
INTERNATIONAL = re.compile(rb"\+\(?\d" + SEPARATED + rb"{7,14}(?!\w)")
DECIMAL = re.compile(rb"\+\d{4,}\.\d+")  # +35236450.6; +1.4155552671 is how registries of domains write one
NORTH_AMERICAN = re.compile(
    rb"(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d([.-]))[2-9]\d\d(?(1)\1|[ .-])\d{4}(?![\w-]|\.\d)"
)
NAMED_NUMBER = re.compile(rb"[+(]?\d" + SEPARATED + rb"{6,14}(?!\w)")
PHONE_WORD = re.compile(
    rb"(?:\b(?:tel|telephone|phone|phones|mobile|mob|cell|fax|whatsapp|telefon|telefax|handy|t\xc3\xa9l|t\xc3\xa9l\xc3\xa9phone"
    rb"|tel\xc3\xa9fono|telefone|hotline)|\xe7\x94\xb5\xe8\xaf\x9d|\xe6\x89\x8b\xe6\x9c\xba|\xe9\x9b\xbb\xe8\xa9\xb1)"
    rb"(?: ?(?:no|nr|number|num))?\.?(?: ?[:#]| ?\xef\xbc\x9a)? ?$",
    re.I,
)
FICTION = re.compile(rb"55501\d\d$")  # 555-0100 to 555-0199 are given to nobody

CARD = re.compile(rb"(?:\d{4}([ -])\d{4}\1\d{4}\1\d{4}|\d{4}([ -])\d{6}\2\d{4,5}|\d{14,16})(?![\w-]|[. ]\d)")
CARD_NUMBERS = re.compile(
    rb"4\d{15}|5[1-5]\d{14}|(?:222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}|6(?:011|4[4-9]\d|5\d\d)\d{12}"
    rb"|35(?:2[89]|[3-8]\d)\d{12}|3[47]\d{13}|3(?:0[0-5]|[689]\d)\d{11}"
)  # Visa, Mastercard, Discover, JCB of 16 digits, American Express of 15, Diners Club of 14
# Characters of an IBAN by country, the check digits and the country among them (ISO 13616).
IBAN_LENGTHS = {
    country.encode(): int(length)
    for length, countries in (
        line.split(":")
        for line in (
            "15:NO|16:BE|18:DK FO FI GL NL SD|19:MK SI|20:AT BA EE KZ LT LU XK|21:CH HR LI LV|22:BG BH CR DE GB GE IE "
            "ME RS VA|23:AE GI IL IQ TL|24:AD CZ ES MD PK RO SA SE SK TN VG|25:LY PT ST|26:IS TR|27:FR GR IT MC MR SM"
            "|28:AL AZ BY CY DO GT HU LB PL|29:BR EG PS QA UA|30:JO KW MU|31:MT SC|32:LC"
        ).split("|")
    )
    for country in countries.split()
}
IBAN = re.compile(rb"[A-Z]{2}\d\d(?: ?[A-Z0-9]){11,30}")

# What a key begins with, the whole key, and whether its characters must look random as well: formats that the issuers
# publish (AWS, GitHub, GitLab, Slack, OpenAI and Anthropic, Stripe, Google, npm, PyPI, Hugging Face, SendGrid; RFC 7519
# for JSON web tokens, RFC 7468 for keys in PEM, RFC 6750 for bearer tokens, RFC 3986 for passwords in addresses). A
# group is the part that is masked.
KEYS = (
    ("AKIA", rb"AKIA[A-Z2-7]{16}(?!\w)", False),
    ("ASIA", rb"ASIA[A-Z2-7]{16}(?!\w)", False),
    *((f"gh{kind}_", rb"gh[pousr]_[A-Za-z0-9]{36,255}", False) for kind in "pousr"),
    ("github_pat_", rb"github_pat_\w{50,255}", False),
    ("glpat-", rb"glpat-[\w-]{20,255}", True),
    *((f"xox{kind}-", rb"xox[abeoprs]-[A-Za-z0-9-]{20,255}", True) for kind in "abeoprs"),
    ("hooks.slack.com/services/", rb"hooks\.slack\.com/services/(T\w+/B\w+/\w{20,})", False),
    ("sk-", rb"sk-[\w-]{20,255}", True),
    *((f"{kind}k_live_", rb"[rs]k_live_[A-Za-z0-9]{16,}", False) for kind in "rs"),
    ("AIza", rb"AIza[\w-]{35}(?![\w-])", False),
    ("ya29.", rb"ya29\.[\w-]{20,2048}", True),
    ("npm_", rb"npm_[A-Za-z0-9]{36}(?!\w)", True),
    ("pypi-", rb"pypi-[\w-]{50,512}", True),
    ("hf_", rb"hf_[A-Za-z0-9]{34}(?!\w)", True),
    ("SG.", rb"SG\.[\w-]{22}\.[\w-]{43}(?![\w-])", False),
    ("eyJ", rb"eyJ[\w-]{10,1024}\.eyJ[\w-]{10,8192}\.[\w-]{10,1024}", False),
    ("Bearer ", rb"Bearer ([\w.~+/-]{20,2048}=*)", True),
    (
        "-----BEGIN ",
        rb"-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----(?:[\w+/=:,.\s\\]|(?<=\w)-(?=\w)){64,20000}"
        rb"-----END [A-Z ]*PRIVATE KEY(?: BLOCK)?-----",
        False,
    ),
    ("://", rb"://[^\s/:@\"'<>]{1,64}:([^\s/:@\"'<>]{3,64})@", False),
)
PREFIXES = tuple(prefix for prefix, _, _ in KEYS)
KEY_PATTERNS = tuple((prefix.encode(), re.compile(pattern), random) for prefix, pattern, random in KEYS)
PLACEHOLDERS = re.compile(
    rb"example|placeholder|your|change.?me|dummy|sample|redacted|x{4}|\*{3}|0{6}|123456|abcdef|^pass(?:word|wd)?$|^secret$|\.{3}"
    rb"|^[$%{<]",
    re.I,
)
# The name that a secret is assigned to, up to where its value begins.
SECRET_NAME = re.compile(
    rb"([\w-]*(?:passw(?:or)?d|passwd|pwd|secret|token|api_?-?key|access_?-?key|private_?-?key|auth_?-?key"
    rb"|signing_?-?key|encryption_?-?key|account_?-?key|credentials?)[\w-]*)"
    rb"[\"'\]]{0,2}[ \t]*(?:=>|[:=]{1,2})[ \t]*[\"'`]*$",
    re.I,
)
NO_SECRET_NAME = re.compile(rb"public|hash|digest|checksum|sha\d|md5|_id$|count|url|path|file|type|name$", re.I)
SECRET_VALUE = re.compile(rb"[A-Za-z0-9+/_.~-]{16,512}={0,2}")
CODE_VALUE = re.compile(rb"[A-Za-z_]+(?:\.[A-Za-z_]\w*)+|[A-Za-z]+\d?(?:[_-][A-Za-z]+\d?)+")  # a name, not a value
HEX = re.compile(rb"[0-9A-Fa-f-]+")
LEAST_BITS, LEAST_HEX_BITS = 3.5, 3.0  # of entropy a character; a hexadecimal one has 4 at most


def email(text: bytes, at: int) -> Span | None:
    found = EMAIL.match(text, at)
    if found is None or found[0].startswith(b"git@"):  # git@github.com:owner/repository
        return None
    ending = found[2].lower().decode()
    if (len(ending) > 2 and ending not in LONG_ENDINGS) or NOBODYS_DOMAINS.search(found[1]):
        return None
    return found.span()


def ipv4(text: bytes, at: int) -> Span | None:
    found = IPV4.match(text, at)
    if found is None or not _is_public(found[0]):
        return None
    octets = [int(octet) for octet in found[0].split(b".")]
    before = text[max(0, at - 16) : at]
    if max(octets[:3]) < LEAST_OCTET or BEFORE_IPV4.search(before) or VERSION_WORD.search(before):
        return None
    begins_line = at == 0 or before.endswith(b"\n")
    if begins_line and max(octets) < MOST_SECTIONS and HEADING.match(text, found.end()):
        return None
    return found.span()


def ipv6(text: bytes, at: int) -> Span | None:
    found = IPV6.match(text, at)
    return found.span() if found and text[at - 1 : at] != b":" and _is_public(found[0]) else None


def _is_public(address: bytes) -> bool:
    try:
        parsed = ipaddress.ip_address(address.decode())
    except ValueError:
        return False
    return parsed.is_global and not (parsed.is_multicast or parsed.is_reserved or parsed.is_unspecified)


def phone(text: bytes, at: int) -> Span | None:
    before = text[max(0, at - 24) : at]
    if named := PHONE_WORD.search(before):
        return _span_of_digits(NAMED_NUMBER.match(text, at)) if named else None
    if re.search(rb"[\w.+/=#-]$", before):
        return None
    if text[at : at + 1] == b"+":
        return _international(text, at)
    found = NORTH_AMERICAN.match(text, at)
    return found.span() if found and _is_valid_phone(found[0], "US") and not _is_fiction(found[0]) else None


def _span_of_digits(found: re.Match[bytes] | None) -> Span | None:
    return found.span() if found and not _is_fiction(found[0]) else None


def _international(text: bytes, at: int) -> Span | None:
    """The longest number from here that its country's plan knows, ending where a group of digits ends."""
    found = INTERNATIONAL.match(text, at)
    if found is None or DECIMAL.fullmatch(found[0]):
        return None
    number = found[0]
    while len(number) > 7:
        end = at + len(number)
        if _is_valid_phone(number, None) and not re.match(rb"[.,]\d", text[end : end + 2]):
            return None if _is_fiction(number) else (at, end)
        number = re.sub(rb"[^\d]+\d+$|\d+$", b"", number)
    return None


def _is_valid_phone(number: bytes, region: str | None) -> bool:
    import phonenumbers  # Google's libphonenumber; its tables load by country

    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(number.decode(), region))
    except phonenumbers.NumberParseException:
        return False


def _is_fiction(number: bytes) -> bool:
    return FICTION.search(re.sub(rb"\D", b"", number)) is not None


def card(text: bytes, at: int) -> Span | None:
    found = CARD.match(text, at)
    if found is None or re.search(rb"[\w.+-]$", text[max(0, at - 1) : at]):
        return None
    digits = re.sub(rb"\D", b"", found[0])
    return found.span() if CARD_NUMBERS.fullmatch(digits) and passes_luhn(digits) else None


def passes_luhn(digits: bytes) -> bool:
    """Whether the last digit checks the others (ISO/IEC 7812-1)."""
    values = [digit - ord("0") for digit in reversed(digits)]
    return sum(values[::2] + [value * 2 - 9 * (value > 4) for value in values[1::2]]) % 10 == 0


def iban(text: bytes, at: int) -> Span | None:
    found = IBAN.match(text, at)
    length = IBAN_LENGTHS.get(text[at : at + 2])
    if found is None or length is None:
        return None
    end, characters = at, b""
    while len(characters) < length and end < found.end():
        characters += text[end : end + 1].strip()
        end += 1
    if len(characters) < length or re.match(rb"\w", text[end : end + 1]):
        return None
    number = "".join(str(int(chr(c), 36)) for c in characters[4:] + characters[:4])
    return (at, end) if int(number) % 97 == 1 else None


def key(text: bytes, at: int) -> Span | None:
    for prefix, pattern, random in KEY_PATTERNS:
        if not text.startswith(prefix, at):
            continue
        found = pattern.match(text, at)
        if found is None:
            continue
        value = found[found.lastindex or 0]
        if PLACEHOLDERS.search(value) or (random and not looks_random(value)):
            return None
        return found.span(found.lastindex or 0)
    return None


def assignment(text: bytes, at: int) -> Span | None:
    """A value that looks random and is assigned to a name that says secret."""
    name = SECRET_NAME.search(text[max(0, at - 80) : at])
    if name is None or NO_SECRET_NAME.search(name[1]):
        return None
    value = SECRET_VALUE.match(text, at)
    return value.span() if value and looks_random(value[0]) else None


def looks_random(value: bytes) -> bool:
    """Whether letters and digits are mixed with as much entropy as keys have, and it is no placeholder or name."""
    if PLACEHOLDERS.search(value) or CODE_VALUE.fullmatch(value):
        return False
    digits = sum(value.count(digit) for digit in b"0123456789")
    if digits < 2 or not re.search(rb"[A-Za-z]", value):
        return False
    counts = Counter(value).values()
    bits = -sum(count / len(value) * math.log2(count / len(value)) for count in counts)
    return bits >= (LEAST_HEX_BITS if HEX.fullmatch(value) else LEAST_BITS)


# By the scanner's name of a place: what may stand there, the likeliest first.
AT_PLACE: dict[str, tuple[tuple[str, Callable[[bytes, int], Span | None]], ...]] = {
    "email": (("email", email),),
    "ipv4": (("ip", ipv4),),
    "ipv6": (("ip", ipv6),),
    "number": (("card", card), ("phone", phone)),
    "iban": (("iban", iban),),
    "assignment": (("key", assignment),),
    "key": (("key", key),),
}
