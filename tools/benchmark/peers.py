"""Other projects' packages, for comparisons: each installed into a folder of its own, never into ours."""

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "runs" / "peers"
REQUIREMENTS = {
    "rensa": ("rensa",),
    "datasketch": ("datasketch", "xxhash"),
    "datatrove": ("datatrove", "spacy", "nltk", "tldextract", "tokenizers", "xxhash<4"),  # it breaks with xxhash 4
    "pydivsufsort": ("pydivsufsort",),
    "megatron_core": ("--no-deps", "megatron-core==0.16.1"),  # what its data side needs is installed with ours
}


def peer(name: str) -> Path:
    """The folder that the package lies in, installed by pip if it is not there.

    Raises CalledProcessError with pip's complaints on stderr where that fails.
    """
    target = FOLDER / name
    if not target.is_dir():
        partial = target.with_name(f"{name}.partial")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--target", str(partial), "--upgrade", *REQUIREMENTS[name]], check=True)
        partial.rename(target)
    return target


def run_with_peer(name: str, arguments: list[str]) -> str:
    """What a Python of its own prints, with the peer first on its search path: its numpy may not be ours."""
    environment = {**os.environ, "PYTHONPATH": str(peer(name))}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
