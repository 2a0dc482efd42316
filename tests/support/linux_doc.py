"""The kernel's documentation in other languages, from Debian's package, for tests that are run nightly."""

import re
import subprocess
from pathlib import Path

from tools.fetch_corpus import APT_OPTIONS, find_package


def translated_pages(directory: Path) -> list[tuple[str, str]]:
    """(folder, text) of each page: folders are named zh_CN, zh_TW, it_IT, ja_JP, ko_KR, sp_SP.

    Needs Debian's or Ubuntu's package lists; what cannot be fetched is an error, since nothing else stands in for it.
    """
    package = find_package(r"linux-doc-[0-9.]+")
    assert package, "no package linux-doc-* in the package lists (apt-get update)"
    subprocess.run(["apt-get", "download", *APT_OPTIONS, package], cwd=directory, check=True, capture_output=True)
    (archive,) = directory.glob("*.deb")
    subprocess.run(["dpkg", "-x", archive.name, "."], cwd=directory, check=True)
    pages = []
    for path in sorted(directory.glob("usr/share/doc/*/html/_sources/translations/*/**/*.rst.txt")):
        folder = re.search(r"/translations/([a-z]{2}_[A-Z]{2})/", str(path))[1]
        pages.append((folder, path.read_text(encoding="utf-8")))
    assert pages, f"no translations in {package}"
    return pages
