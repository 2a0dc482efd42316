"""Personal data and secrets are masked, by kind; what looks like them and belongs to nobody stays."""

import random
import string
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_lite.curation import _lists
from megatron_lite.curation.documents import Document
from megatron_lite.curation.rules import pii, pii_patterns
from megatron_lite.curation.rules.pii import TOKENS, Pii, mask
from megatron_lite.errors import UsageError

HEX_KEY = "9f8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c"
PEM = "-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEowIBAAKCAQEA7bq8\n" * 8 + "-----END RSA PRIVATE KEY-----"
# Made up, all of them. Assembled from halves, so that no scanner of repositories takes one for a real key.
SLACK = "xox" + "b-2039485761-4857602938475-Qm4Zt8Lw2Xv6Rk1Bn9Ys3Hd7"
AWS = "AKIA" + "J3QXT7MPL2WZRB5Y"
GITHUB = "ghp_" + "aB3dE6fG9hI2jK5lM8nO1pQ4rS7tU0vW3xY6"
OPENAI = "sk-" + "proj-T7uV2wX9yZ4aB1cD6eF3gH8iJ5kL0mN"
MASKED = {
    "email": ["john.doe@corp.co.uk", "a_b+c%d@mail-1.sub.domain.org", "x@t-online.de", "SALES@ACME.COM"],
    "ip": ["93.184.216.34", "130.237.48.87", "203.0.114.9", "2606:4700:4700::1111", "2a00:1450:4001:81b:0:0:0:200e"],
    "phone": ["+44 20 7946 0958", "+49-30-901820", "+14158675309", "(415) 867-5309", "212-736-5000", "1 212.736.5000"],
    "card": ["4012 8888 8888 1881", "5105-1051-0510-5100", "378282246310005", "3714 496353 98431", "30569309025904"],
    "iban": ["GB82 WEST 1234 5698 7654 32", "DE89370400440532013000", "NO93 8601 1117 947"],
    "key": [AWS, GITHUB, SLACK, OPENAI, PEM],
}
NOBODYS = [
    "user@example.com, root@localhost, a@b.example, ask@host.test",
    "git clone git@github.com:owner/project.git",
    "x@self.weight and q@k.transpose(0, 1), icon@2x.png, pkg@1.2.rc, @decorator, a @ b.com",
    "127.0.0.1 10.1.2.3 192.168.0.17 172.16.5.4 169.254.1.1 0.0.0.0 255.255.255.255 224.0.0.251",
    "192.0.2.33 198.51.100.7 203.0.113.200 2001:db8::17 ::1 fe80::1ff:fe23:4567:890a",
    "999.10.20.30 80.01.02.03 80.1.2 80.1.2.3.4 1.3.6.1.4.1.311",
    "v80.12.33.44, version 93.184.216.34, release: 93.184.216.34, libfoo-93.184.216.34.tar.gz",
    "requires foo==93.184.216.34, bar>=93.184.216.34 and 1.2.3.4",
    "38.17.6.2. Security of Functions\n43.7.2.1 Opening cursors",
    "call 415-555-0132 or +1 212 555 0199",
    "2023-11-26 12:00:00 +0200, 1990-2023, 100-200-3000, 3.14159265358979, +12345678, 1e+12345678",
    "4012 8888 8888 1882, 1234567812345678, 0.4012888888881881, 20231126120000",
    "GB83 WEST 1234 5698 7654 32 and XX89370400440532013000 and DE893704004405320130001",
    "AKIA" + "IOSFODNN7EXAMPLE, ghp_short, sk-rotating-spinner-animation-delay, skip-20-of-30-and-more-words",
    f"commit {HEX_KEY}, sha256 = {HEX_KEY * 2}, token_hash = '{HEX_KEY}', public_key: '{HEX_KEY}'",
    'password = get_password_from_keyring1("x"), api_key="YOUR_API_KEY_1234567", secret: ${SECRET_1_FROM_VAULT_2}',
    "http://user:password@host/ and std::string::npos and a[2000::2] and 12:30:45",
    "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----",
]
FILLERS = ["", "text", "\n", " ", "、", "電話", " (see", "<", ">", '"', ", ", "§", "é", "\t", "[", "] "]


def masked(kind: str) -> str:
    return TOKENS[kind]


@pytest.mark.parametrize(("kind", "thing"), [(kind, thing) for kind, things in MASKED.items() for thing in things])
def test_each_kind_is_masked_whole_and_counted(kind: str, thing: str) -> None:
    for before, after in ((" ", "."), ("", ""), ("见", "。"), ('"', '"'), ("(", ")"), ("<", ">"), ("\n", "\n")):
        assert mask(f"{before}{thing}{after}") == (f"{before}{masked(kind)}{after}", {kind: 1})


@pytest.mark.parametrize("text", NOBODYS)
def test_what_belongs_to_nobody_stays(text: str) -> None:
    assert mask(text) == (text, {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Tel.: 030 1234567, Fax 089/7654321", "Tel.: <PHONE_NUMBER>, Fax <PHONE_NUMBER>"),
        ("电话：13812345678。", "电话：<PHONE_NUMBER>。"),
        ("13812345678", "13812345678"),
        (f'api_key = "{HEX_KEY}"', 'api_key = "<KEY>"'),
        (f"export AWS_SECRET_ACCESS_KEY={HEX_KEY}\n", "export AWS_SECRET_ACCESS_KEY=<KEY>\n"),
        (f"{{'client-secret': '{HEX_KEY}'}}", "{'client-secret': '<KEY>'}"),
        (f"auth_token => {HEX_KEY};", "auth_token => <KEY>;"),
        (f"Authorization: Bearer {HEX_KEY}", "Authorization: Bearer <KEY>"),
        ("ftp://bob:hunter2@files.acme.com/x", "ftp://bob:<KEY>@files.acme.com/x"),
        ("http://93.184.216.34:80/a", "http://<IP_ADDRESS>:80/a"),
        ("src=93.184.216.34 dst=host/130.237.48.87", "src=<IP_ADDRESS> dst=host/<IP_ADDRESS>"),
        ("from 93.184.216.34, version 2", "from <IP_ADDRESS>, version 2"),
        ("mailto:jane@acme.com?subject=1", "mailto:<EMAIL>?subject=1"),
        ("a@acme.com,b@acme.com;c@acme.com", "<EMAIL>,<EMAIL>;<EMAIL>"),
    ],
)
def test_what_stands_around_decides(text: str, expected: str) -> None:
    assert mask(text)[0] == expected


def test_the_document_tells_how_many_of_each_kind_were_masked() -> None:
    document = Document("a/0/0", f"a@acme.com b@acme.com 93.184.216.34 {AWS}", "a")
    assert Pii()(document) is None
    assert document.text == "<EMAIL> <EMAIL> <IP_ADDRESS> <KEY>"
    assert document.metadata == {"pii": {"email": 2, "ip": 1, "key": 1}}


def test_kinds_can_be_chosen() -> None:
    document = Document("a/0/0", "a@acme.com 93.184.216.34", "a")
    Pii(kinds=("ip",))(document)
    assert document.text == "a@acme.com <IP_ADDRESS>"
    with pytest.raises(UsageError, match=r"kinds mail: there are email, ip"):
        Pii(kinds=("mail",))


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Nd"], exclude_characters="@")))
def test_a_text_without_candidates_is_returned_as_it_was(text: str) -> None:
    document = Document("a/0/0", text, "a")
    Pii()(document)
    assert document.text is text
    assert document.metadata == {}


PIECES = [
    *(thing for things in MASKED.values() for thing in things),
    *NOBODYS,
    *FILLERS,
    "Tel. ",
    "token = ",
    "@",
    ".",
    ":",
    "+1",
    "555",
]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
def test_masking_a_masked_text_changes_nothing(text: str) -> None:
    once, _ = mask(text)
    assert mask(once) == (once, {})


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([" x", "。", "\n", " ("]), st.sampled_from(sorted(MASKED)), st.integers(0, 9)))
)
def test_everything_planted_is_found_and_nothing_else_changes(plan: list[tuple[str, str, int]]) -> None:
    text, expected = "", ""
    for filler, kind, number in plan:
        thing = MASKED[kind][number % len(MASKED[kind])]
        text += f"{filler} {thing} ;"
        expected += f"{filler} {masked(kind)} ;"
    assert mask(text)[0] == expected


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from([*PIECES, "12", "3.4", "GB", "-"]), max_size=8).map("".join))
def test_the_scan_passes_over_no_place_where_a_pattern_begins(text: str) -> None:
    """Numbers, addresses and keys, tried at every byte that begins a word."""
    data = text.encode()
    places = {(_lists.PII_PLACES[place], at) for place, at in pii.scanner().find(text)}
    word = set((string.ascii_letters + string.digits + "_-").encode())  # what may not stand before one
    for place in ("ipv4", "ipv6", "number", "iban", "key"):
        for _, look in pii_patterns.AT_PLACE[place]:
            for at in range(len(data)):
                if (at == 0 or data[at - 1] not in word) and look(data, at):
                    assert (place, at) in places, (place, data[at : at + 30])


UNITS = ["=", "= ", "a@", "a@b.", "@", "AB12 ", "eyJ-", "eyJaaaaaaaaaaa.", "sk-", "1", "1 ", "+1", "(1", "1.1", "2001:"]
UNITS += [
    "-----BEGIN PRIVATE KEY-----\n",
    "Bearer a1",
    "://a:",
    "password=",
    "token: a1",
    "xoxb-1-",
    ".",
    "%",
    "é",
    "tel 1",
]


@pytest.mark.parametrize("unit", UNITS)
def test_no_text_takes_long(unit: str) -> None:
    """100 kB of anything: were one quadratic it would be minutes."""
    text = unit * (100_000 // len(unit))
    started = time.process_time()
    mask(text)
    assert time.process_time() - started < 4


def test_luhn_equals_the_sum_worked_out_by_hand() -> None:
    """ISO/IEC 7812-1: from the right every second digit doubled, digits of products added."""
    rng = random.Random(0)
    for _ in range(300):
        number = "".join(rng.choices(string.digits, k=rng.randint(2, 19)))
        total = sum(sum(map(int, str(int(d) * (1 + i % 2)))) for i, d in enumerate(reversed(number)))
        assert pii_patterns.passes_luhn(number.encode()) == (total % 10 == 0)
