"""Our side of the binarizing comparison: what tools/preprocess_data.py does, with the seconds of it.

    python tools/benchmark/our_preprocess.py --input F.jsonl --output-prefix P --tokenizer-model T --workers N

Prints one line of JSON: the seconds of the whole call, from the look at the input to the last file in place, and the
processor seconds of all processes meanwhile; only this process's imports are left out.
"""

import argparse
import json
import sys
import time
from functools import partial

from megatron_preprocess import processor_seconds

from megatron_lite.data.encode import Settings
from megatron_lite.data.preprocess import preprocess


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--input", "--output-prefix", "--tokenizer-model"):
        parser.add_argument(name, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--encoder", choices=("auto", "sentencepiece"), default="auto")
    options = parser.parse_args()
    settings = Settings(options.tokenizer_model, append_eod=True, fast=options.encoder == "auto")
    start, before = time.perf_counter(), processor_seconds()
    preprocess(
        [options.input],
        options.output_prefix,
        settings,
        workers=options.workers,
        skip_malformed=False,
        say=partial(print, file=sys.stderr),
    )
    print(json.dumps({"seconds": time.perf_counter() - start, "processor": processor_seconds() - before}))


if __name__ == "__main__":
    main()
