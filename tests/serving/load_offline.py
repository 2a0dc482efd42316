"""The clients' requests as one batch, without a server, once for each line of standard input.

load_offline.py CHECKPOINT REQUESTS ROWS -> tokens a second, a line for each
"""

import sys
import time
from dataclasses import replace

from load_clients import body_of

from megatron_lite.inference.engine import Engine
from megatron_lite.inference.opening import Asked, opened_model
from megatron_lite.inference.requests import Request
from megatron_lite.inference.sampling import Sampling
from megatron_lite.serve import limits_of
from megatron_lite.serving.server import sizes_of


def main() -> None:
    path, requests, rows = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with opened_model(Asked(path)) as opened:
        tokenizer, made = opened.tokenizer, []
        for number in range(requests):
            body = body_of(number, "", sorted(limits_of(tokenizer).stop_tokens))
            limits = replace(limits_of(tokenizer), max_new_tokens=body["max_tokens"])
            way = Sampling(1.0, logit_bias={int(token): bias for token, bias in body["logit_bias"].items()})
            made.append(Request(number, tuple(tokenizer.encode_prompt(body["prompt"])), limits, way, number))
        engine = Engine(opened.model, sizes_of(opened, rows, 2**30), tokenizer.decode)
        print("ready", flush=True)
        for _ in sys.stdin:
            begun = time.monotonic()
            answers = engine.run(made)
            took = time.monotonic() - begun
            print(sum(len(one.tokens) for samples in answers for one in samples) / took, flush=True)


if __name__ == "__main__":
    main()
