"""Which versions of other projects' packages are compared with."""

import re
from pathlib import Path

import peers

ROOT = Path(__file__).parents[3]


def versions_in(lines) -> dict[str, str]:
    """By the name that pip makes of each."""
    pinned = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pinned}


def test_what_transformers_is_run_with_has_the_versions_of_our_own_environment():
    ours = versions_in((ROOT / "constraints.txt").read_text().splitlines())
    theirs = versions_in(peers.REQUIREMENTS["transformers_5"])
    both = ours.keys() & theirs.keys()
    assert {"tokenizers", "gguf", "huggingface-hub"} <= both
    assert {name: theirs[name] for name in both} == {name: ours[name] for name in both}


def test_every_package_of_transformers_is_pinned():
    for version in ("transformers_4", "transformers_5"):
        option, *packages = peers.REQUIREMENTS[version]
        assert option == "--no-deps" and all("==" in package for package in packages)
