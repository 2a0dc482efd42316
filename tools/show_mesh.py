"""Show where a configuration's ranks stand: the layout in words, and as a picture.

python tools/show_mesh.py examples/quickstart.yaml --world-size 8 --svg mesh.svg
"""

import argparse
from pathlib import Path

from megatron_lite.config import load_config, resolve
from megatron_lite.errors import run_command
from megatron_lite.model.model import schedule_of
from megatron_lite.training.mesh_drawing import describe, mesh_svg


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Show where a configuration's ranks stand.")
    parser.add_argument("config", metavar="CONFIG.yaml")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="for example parallel.tensor=8")
    parser.add_argument("--world-size", type=int, required=True, metavar="N", help="processes of the job")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write the picture here")
    return parser.parse_intermixed_args()  # key=value may stand after an option


def main() -> None:
    options = parse_arguments()
    config = load_config(options.config, options.overrides)
    layout = resolve(config, options.world_size)
    print(f"{describe(layout)}; {layout.microbatches} microbatches a step, stage layers {list(layout.stage_layers)}")
    if options.svg:
        options.svg.write_text(
            mesh_svg(layout, schedule_of(config, layout, layout.microbatches).placement), encoding="utf-8"
        )


if __name__ == "__main__":
    run_command(main)
