"""Models in and out: Hugging Face directories and GGUF files, tensor by tensor.

open_source(path)                       what a path holds, recognized by its content and checked
convert(source, target, to, ...)        written beside the target, and renamed when it is whole
compare(ours, theirs, batches)          how far two models' logits are apart; refused above a bound
"""

from megatron_lite.exchange.convert import Written, convert
from megatron_lite.exchange.origin import open_source
from megatron_lite.exchange.source import Facts, Source, Stored
from megatron_lite.exchange.verify import compare

__all__ = ["Facts", "Source", "Stored", "Written", "compare", "convert", "open_source"]
