"""MinHash signatures by another project's package: prints its CPU seconds as JSON. Run by compare_dedup.py.

python tools/benchmark/sign_with_peer.py PEER TEXTS.json

What is timed goes from texts to signatures of 112 permutations (14 bands of 8), over sets of 5 words.
"""

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

WORDS = re.compile(r"\w+(?:['’]\w+)?|[^\w\s]")
PERMUTATIONS = 112


def shingles(text: str) -> list[str]:
    words = WORDS.findall(text.lower())
    return [" ".join(words[i : i + 5]) for i in range(max(len(words) - 4, 1))]


def rensa() -> Callable[[str], object]:
    from rensa import RMinHash

    def sign(text: str) -> object:
        signature = RMinHash(num_perm=PERMUTATIONS, seed=1)
        signature.update(shingles(text))
        return signature.digest()

    return sign


def datasketch() -> Callable[[str], object]:
    import xxhash
    from datasketch import MinHash

    def sign(text: str) -> object:
        signature = MinHash(num_perm=PERMUTATIONS, hashfunc=xxhash.xxh32_intdigest)
        signature.update_batch([shingle.encode() for shingle in shingles(text)])
        return signature.hashvalues

    return sign


def datatrove() -> Callable[[str], object]:
    """As it comes: 14 bands of 8, 5-grams of spaCy's words."""
    from datatrove.pipeline.dedup import MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig

    signer = MinhashDedupSignature("/dev/null", MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8))
    return lambda text: signer.get_signature(signer.get_shingles(text))


PEERS = {"rensa": rensa, "datasketch": datasketch, "datatrove": datatrove}


def main() -> None:
    name, path = sys.argv[1:]
    texts = json.loads(Path(path).read_text())
    sign = PEERS[name]()
    sign("one two three four five six")  # what is loaded late is loaded here
    started = time.process_time()
    for text in texts:
        sign(text)
    print(json.dumps({"seconds": time.process_time() - started}))


if __name__ == "__main__":
    main()
