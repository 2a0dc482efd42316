"""show_mesh.py as a user calls it."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "tools/show_mesh.py", "examples/quickstart.yaml", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_picture_in_the_readme_is_the_quickstarts_layout(tmp_path: Path) -> None:
    picture = tmp_path / "mesh.svg"
    done = run("--world-size", "8", "--svg", str(picture))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "tensor 2 × pipeline 2 × data 2; 4 microbatches a step, stage layers [3, 1]\n"
    assert picture.read_bytes() == (ROOT / "examples" / "figures" / "mesh.svg").read_bytes()


def test_the_picture_is_xml_with_every_rank_once(tmp_path: Path) -> None:
    picture = tmp_path / "mesh.svg"
    run("parallel.tensor=1", "--world-size", "4", "--svg", str(picture))
    texts = [text.text for text in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text")]
    assert sorted(text for text in texts if text.isdigit()) == ["0", "1", "2", "3"]


def test_a_layout_that_does_not_fit_the_world_is_one_line_and_exit_code_2() -> None:
    done = run("--world-size", "6")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_a_stage_of_several_chunks_names_all_its_blocks(tmp_path: Path) -> None:
    picture = tmp_path / "mesh.svg"
    layout = ("parallel.schedule=zb_v", "parallel.virtual_stages=2", "--world-size", "8")
    assert run(*layout, "--svg", str(picture)).returncode == 0
    texts = [text.text for text in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text")]
    assert "block 0, embedding, block 3, head" in texts
    assert "block 1, block 2" in texts
