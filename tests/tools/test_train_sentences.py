"""tools/train_sentences.py: from JSON lines to a file that splits sentences."""

import json
import subprocess
import sys
from pathlib import Path

from megatron_lite.data.sentences import SentenceSplitter

TOOL = Path(__file__).parents[2] / "tools" / "train_sentences.py"
PROSE = "The Abk. number {} was seen again by the people of the town. They saw that Abk. on a table. Nobody was there."


def train(tmp_path: Path, lines: list[str], *options: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    command = [
        sys.executable,
        str(TOOL),
        "--input",
        str(tmp_path / "texts.jsonl"),
        "--output",
        str(tmp_path / "p.json"),
    ]
    return subprocess.run([*command, *options], capture_output=True, text=True)


def test_parameters_are_learned_from_the_texts_of_a_file(tmp_path: Path) -> None:
    lines = [json.dumps({"content": PROSE.format(i)}) for i in range(100)]
    done = train(tmp_path, lines, "--json-key", "content", "--no-abbreviations")
    assert done.returncode == 0, done.stderr
    assert "p.json: " in done.stdout and " abbreviations, " in done.stdout
    splitter = SentenceSplitter(tmp_path / "p.json")
    assert splitter.split("This is Abk. seven. Mr. Smith left.") == ["This is Abk. seven.", "Mr.", "Smith left."]


def test_a_malformed_line_is_named(tmp_path: Path) -> None:
    done = train(tmp_path, [json.dumps({"text": PROSE}), '{"text": 3}'])
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.strip().endswith("texts.jsonl line 2: 'text' holds a int, not a string")
    assert not (tmp_path / "p.json").exists()
