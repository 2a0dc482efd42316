"""Show a pipeline schedule: its timeline as text, picture or trace, its bubble and its peak of live activations.

python tools/show_schedule.py --schedule 1f1b --stages 4 --microbatches 8 --svg timeline.svg
"""

import argparse
import json
from pathlib import Path

from megatron_lite.errors import UsageError, run_command
from megatron_lite.parallel.pipeline.checker import check
from megatron_lite.parallel.pipeline.drawing import chrome_trace, timeline_svg, timeline_text
from megatron_lite.parallel.pipeline.schedules import SCHEDULES, Schedule, split_backward
from megatron_lite.parallel.pipeline.simulator import Costs, simulate


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Show a pipeline schedule, its bubble and its peak of activations.")
    parser.add_argument("--schedule", choices=sorted(SCHEDULES), default="1f1b")
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--chunks", type=int, default=1, help="of the model on a stage (default 1)")
    parser.add_argument("--microbatches", type=int, default=8)
    parser.add_argument("--split", type=int, metavar="DELAY", help="split each backward, weights DELAY actions later")
    parser.add_argument("--forward", type=float, default=1, help="time of a forward (default 1)")
    parser.add_argument("--backward-input", type=float, default=1, help="time of a backward for the input (default 1)")
    parser.add_argument("--backward-weight", type=float, default=1, help="time of one for the weights (default 1)")
    parser.add_argument("--message", type=float, default=0, help="time of a message between stages (default 0)")
    parser.add_argument("--columns", type=int, default=160, help="width of the text drawing")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write the picture here")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write a Chrome trace here")
    return parser.parse_args()


def build(options: argparse.Namespace) -> Schedule:
    """The schedule asked for; UsageError for sizes it cannot have."""
    try:
        schedule = SCHEDULES[options.schedule](options.stages, options.chunks, options.microbatches)
        return schedule if options.split is None else split_backward(schedule, options.split)
    except ValueError as error:
        raise UsageError(str(error)) from error


def main() -> None:
    options = parse_arguments()
    schedule = build(options)
    proof = check(schedule, options.microbatches)
    costs = Costs(options.forward, options.backward_input, options.backward_weight, options.message)
    if min(costs.forward, costs.backward_input, costs.backward_weight, costs.message) < 0 or costs.forward == 0:
        raise UsageError(f"{costs} is no set of costs: none may be negative, forward must be above 0")
    timeline = simulate(schedule, costs)
    print(timeline_text(timeline, options.columns))
    print(f"makespan {timeline.makespan:g}, idle a stage " + " ".join(f"{idle:g}" for idle in timeline.idle))
    print(f"bubble {timeline.bubble:.1%} of the work")
    print("peak live activations by stage " + " ".join(map(str, proof.peak_live)))
    if options.svg:
        options.svg.write_text(timeline_svg(timeline))
    if options.trace:
        options.trace.write_text(json.dumps(chrome_trace(timeline)))


if __name__ == "__main__":
    run_command(main)
