"""Closed forms of what a unit keeps for backward, and what it takes beside that while it runs.

What a block keeps, in elements of the compute dtype: N a microbatch's tokens on the rank, n those outside
tensor-parallel regions (N / tp under sequence parallelism, else N), H hidden; Q, O and F this rank's columns of packed
queries, keys and values, of queries alone, and of the feed-forward layer:

    recompute   kept                             runs again in backward
    none        4 n H + N (Q + O) + 3 N F        -
    selective   4 n H + N Q + 2 N F              attention, SwiGLU
    full        n H                              the block

4 n H are the inputs and the outputs of both norms. Beside them, in float32: an inverse RMS a norm, a log-sum-exp a
query head. (Korthikanti et al. 2022, arXiv 2205.05198, equations 1 to 6, derived anew: no dropout; SwiGLU's two inputs
and its product; grouped keys and values; fused attention; a norm's output kept as this rank's part.) Between its input
backward and its weight backward a block keeps what its four products need, 2 n H + N (2 H + Q + O + 3 F).

A product whose weight is frozen keeps no input: without qkv and gate_up an n H less each, without down N F. Attention
keeps its output for itself. Nor is anything queued for it.

An adapted product (model/adapters.py) keeps its input nevertheless, and what is between A and B: with t of its weights
adapted by rank r N t r on entering, n r on leaving. For adapters nothing is queued. Dropout's numbers are left out.

What it takes while it runs is told as a `Tape`, line after line of the program (model/transformer.py, model/heads.py).
Kernels take nothing beside their results; PyTorch's operations in their place may, for a moment.
"""

from collections.abc import Iterable

from megatron_lite.planning.operation_memory import OperationMemory, Tape
from megatron_lite.planning.sizes import ENTERING, LEAVING, Unit


class UnitMemory(OperationMemory):
    """The forms of a stage's units."""

    # What stays

    def saved(self, unit: Unit) -> int:
        """Between forward and backward, the unit's input included."""
        if unit.kind == "embedding":
            return self.region_tokens * 8 if unit.trains("embed") else 0  # the row of each token
        if unit.ends:
            return self._head_saved(unit)
        if unit.recompute == "full":
            return self.outside(self.hidden)
        inputs = 2 + self._keeps(unit, "qkv") + self._keeps(unit, "gate_up")
        kept = self.outside(inputs * self.hidden) + 2 * self._scales() + self.inside(2 * self.feed)
        kept += self._head_norms_saved() + self._narrow_saved()
        if unit.recompute == "selective":
            return kept + self.inside(self.packed)
        product = self.inside(self.feed) if self._keeps(unit, "down") else 0
        return kept + product + self._attention_saved(returned=self._keeps(unit, "o"))

    def _keeps(self, unit: Unit, product: str) -> bool:
        """Whether a product's input stays: for its own weight's gradient, or its adapters'."""
        return unit.trains(product) or self.sizes.narrow(product) > 0

    def _narrow_saved(self) -> int:
        """What is between A and B of adapters."""
        entering, leaving = (sum(map(self.sizes.narrow, names)) for names in (("qkv", "gate_up"), ("o", "down")))
        return self.inside(entering) + self.outside(leaving)

    def _head_saved(self, unit: Unit) -> int:
        """In chunks there is no norm's output, but its gradient, whatever is trained; where logits are made again, the
        output and each token's log-sum.
        """
        kept = self.outside(self.hidden) + self._scales()
        in_chunks = unit.kind == "head" and self.chunked
        kept += self._log_sums() if in_chunks and self.sizes.numbers.two_passes else 0
        kept += self.outside(self.hidden) if in_chunks or unit.projection.trained else 0
        return kept + (self.inside(self.vocabulary) + self._losses() if unit.kind == "head" and not self.chunked else 0)

    def queued(self, unit: Unit) -> int:
        """Between an input backward and its weight backward: both factors of each trained weight's gradient."""
        if unit.kind == "embedding":
            return self.inside(self.hidden) + self.region_tokens * 8 if unit.trains("embed") else 0
        if unit.ends:
            in_chunks = unit.kind == "head" and self.chunked
            if in_chunks or not unit.projection.trained:
                return 0
            gradient = self.inside(self.vocabulary) if unit.kind == "head" else self.outside(1)
            return gradient + self.outside(self.hidden)
        factors = {
            "qkv": self.inside(self.packed) + self.outside(self.hidden),
            "o": self.inside(self.hidden + self.queries),
            "gate_up": self.inside(2 * self.feed) + self.outside(self.hidden),
            "down": self.inside(self.hidden + self.feed),
        }
        return sum(size for name, size in factors.items() if unit.trains(name))

    def outputs(self, unit: Unit) -> int:
        """Of a microbatch, what a model that is only asked gives: of whole sequences, log-probabilities and log-sums or
        values.
        """
        numbers = {"head": 2, "scalar_head": 1}.get(unit.kind, 0)
        return numbers * self.region_tokens * self.sizes.resolved.context * self.exact_bytes

    def _losses(self) -> int:
        """Log-sum-exps, as they are and counted ones; targets; two masks of what counts."""
        return self.region_tokens * (2 * self.exact_bytes + 8 + 2)

    def _log_sums(self) -> int:
        return self.region_tokens * self.exact_bytes

    @property
    def chunked(self) -> bool:
        """Whether the head's loss, and the gradients of its product, are worked out chunk by chunk: in one pass in
        forward, in two where the objective takes them.
        """
        return self.sizes.chunked

    def logits(self) -> int:
        """The head's at once, over which their gradient is written."""
        return self._chunk(self.vocabulary) if self.chunked else self.inside(self.vocabulary)

    # What an action takes while it runs

    def forward(self, unit: Unit, summed: bool, keeps: bool) -> Tape:
        """Beside its input, which is there. `summed`: its full gradients are there already; `keeps`: a backward will
        follow.
        """
        tape = Tape()
        if unit.kind == "embedding":
            tape.take(self.region_tokens * 17, self.inside(self.hidden), self.inside(self.hidden))
        elif unit.kind == "scalar_head":
            self._scalar_head_forward(tape)
        elif unit.kind == "head":
            self._chunked_head_forward(tape, unit, summed, keeps) if self.chunked else self._head_forward(tape)
        else:
            self._block_forward(tape, unit, unit.recompute if keeps else "full")
        return tape

    def backward(self, unit: Unit, summed: bool, queues: bool) -> Tape:
        """Beside what it saved and the gradient of its output. `summed`: its full gradients are there already;
        `queues`: weight gradients are left for later.
        """
        tape = Tape()
        if unit.kind == "embedding":
            self._embedding_backward(tape, unit, summed, queues)
        elif unit.ends:
            self._head_backward(tape, unit, summed, queues)
        else:
            if unit.recompute == "full":
                self._block_forward(tape, unit, "none")
                tape.give(self.outside(self.hidden))
            self._block_backward(tape, unit, summed, queues)
        return tape

    def weight_backward(self, unit: Unit, summed: bool) -> Tape:
        """Beside what was queued."""
        tape = Tape()
        if unit.kind == "head" and self.chunked:
            return tape  # it was made before
        for name in ("down", "gate_up", "o", "qkv", "lm_head", "embed", "score"):
            if name not in unit.weights or not unit.trains(name):
                continue
            enters = name in ("qkv", "gate_up") or unit.kind == "head"
            tape.take(self._gathered() if enters else 0)  # its input, again
            self._weight_gradient(tape, unit.weights[name], summed, queues=False)
            tape.give(self._gathered() if enters else 0)
        return tape

    # Blocks

    def _block_forward(self, tape: Tape, unit: Unit, recompute: str) -> None:
        """Ends with what it saved, but its input, and its output taken; nothing but the output with `full`."""
        h, packed, fed = self.outside(self.hidden), self.inside(self.packed), self.inside(2 * self.feed)
        lost = recompute == "full"
        tape.take(h, self._scales())
        self._enter(tape, packed)
        self._adapt_entering(tape, unit, "qkv", lost)
        tape.give(h if lost or not self._keeps(unit, "qkv") else 0, self._scales() if lost else 0)
        self._head_norms_forward(tape)
        tape.give(self._head_norms_saved() if lost else 0)
        self._attention_forward(tape)
        self._leave(tape)
        self._adapt_leaving(tape, "o", lost)
        tape.give(self._attention_lost(unit) if recompute == "none" else self._attention_added())
        tape.give(packed if lost or (recompute == "none" and self.swaps > 1) else 0)
        tape.take(2 * h, self._scales())  # the sum with the residual, and its norm
        tape.give(h)
        self._enter(tape, fed)
        self._adapt_entering(tape, unit, "gate_up", lost)
        tape.give(h if lost or not self._keeps(unit, "gate_up") else 0, self._scales() if lost else 0)
        tape.take(self.inside(self.feed))
        self._leave(tape)
        self._adapt_leaving(tape, "down", lost)
        tape.give(0 if recompute == "none" and self._keeps(unit, "down") else self.inside(self.feed))
        tape.give(fed + h if lost else 0)

    def _attention_lost(self, unit: Unit) -> int:
        """Of what attention gave, what nothing after it keeps."""
        return self._attention_saved() - self._attention_saved(returned=self._keeps(unit, "o"))

    def _adapt_entering(self, tape: Tape, unit: Unit, product: str, lost: bool) -> None:
        """What A makes of the product's input enters the region, and stays unless it is lost; B's product of one weight
        after the other is added.
        """
        if not (columns := self.sizes.narrow(product)):
            return
        tape.take(self.outside(columns), self.inside(columns) if self.gathers else 0)
        tape.give(self.outside(columns) if self.gathers else 0)
        widest = self.inside(self._widest(unit, product))
        tape.take(widest)
        tape.give(widest, self.inside(columns) if lost else 0)

    def _adapt_leaving(self, tape: Tape, product: str, lost: bool) -> None:
        """Sums of what A makes leave the region and stay unless they are lost; B's product is added to the output."""
        if columns := self.sizes.narrow(product):
            tape.take(self.outside(columns), self.outside(self.hidden))
            tape.give(self.outside(self.hidden), self.outside(columns) if lost else 0)

    def _widest(self, unit: Unit, product: str) -> int:
        """Rows of the largest of an entering product's B."""
        names = (f"{target}.lora_B" for target in ENTERING[product])
        return max(unit.weights[name].rows for name in names if name in unit.weights)

    def _block_backward(self, tape: Tape, unit: Unit, summed: bool, queues: bool) -> None:
        """Begins with what `_block_forward` saved; ends with its input's gradient taken and its weights' or queues."""
        self._feed_backward(tape, unit, summed, queues)
        self._adapted_enter_backward(tape, unit, "gate_up", summed, queues)
        self._norm_backward(tape)
        self._attend_backward(tape, unit, summed, queues)
        self._head_norms_backward(tape)
        self._adapted_enter_backward(tape, unit, "qkv", summed, queues)
        self._norm_backward(tape)

    def _adapted_enter_backward(self, tape: Tape, unit: Unit, product: str, summed: bool, queues: bool) -> None:
        """Adapters' part of the input's gradient first; it is added to that of the product itself."""
        columns, weight = self.sizes.narrow(product), unit.weights[product]
        if columns:
            copied = self.inside(self._widest(unit, product)) if product == "qkv" else 0
            tape.take(copied)  # packed heads, one weight's after the other
            tape.give(copied)
            self._adapter_gradients(tape, unit, ENTERING[product], summed)
            tape.take(self.outside(self.hidden))
            tape.give(self.inside(columns), 0 if weight.trained else self.outside(self.hidden))
        self._enter_backward(tape, weight, summed, queues)
        tape.give(self.outside(self.hidden) if columns else 0)

    def _adapter_gradients(self, tape: Tape, unit: Unit, targets: Iterable[str], summed: bool) -> None:
        """At once, wherever the backward is split."""
        for name in (f"{target}.lora_{part}" for target in targets for part in ("A", "B")):
            if name in unit.weights:
                self._weight_gradient(tape, unit.weights[name], summed, queues=False)

    def _feed_backward(self, tape: Tape, unit: Unit, summed: bool, queues: bool) -> None:
        """SwiGLU and the product after it."""
        down, again = unit.weights["down"], unit.recompute == "selective"
        later, product = queues and down.trained, self.inside(self.feed)
        kept = again or self._keeps(unit, "down")
        self._adapter_gradients(tape, unit, LEAVING["down"], summed)
        tape.give(self.outside(self.sizes.narrow("down")))
        tape.take(self._gathered())
        tape.take(product if again else 0)
        tape.take(product)  # its gradient
        if again:
            tape.take(self.inside(2 * self.feed))
            tape.give(product)
        self._weight_gradient(tape, down, summed, queues)
        tape.give(0 if later else self._gathered(), product if kept and not later else 0)
        if not again:
            tape.take(self.inside(2 * self.feed))
            tape.give(product)
        tape.give(self.inside(2 * self.feed))

    def _attend_backward(self, tape: Tape, unit: Unit, summed: bool, queues: bool) -> None:
        """Attention and the product after it."""
        o, again = unit.weights["o"], unit.recompute == "selective"
        self._adapter_gradients(tape, unit, LEAVING["o"], summed)
        tape.give(self.outside(self.sizes.narrow("o")))
        tape.take(self._gathered())
        if again:
            self._attention_forward(tape)
        tape.take(self.inside(self.queries))
        if again:
            held = self.inside(2 * self.queries)  # its output, needed below, and the gradient that autograd was given
            self._attention_backward(tape, self._attention_saved() - held)
            tape.give(held)
        self._weight_gradient(tape, o, summed, queues)
        tape.give(0 if queues and o.trained else self._gathered())
        if not again:
            self._attention_backward(tape, self._attention_saved(returned=self._keeps(unit, "o")))

    # Heads and embedding

    def _head_forward(self, tape: Tape) -> None:
        tape.take(self.outside(self.hidden), self._scales())
        self._enter(tape, self.inside(self.vocabulary))
        tape.take(self._losses())

    def _scalar_head_forward(self, tape: Tape) -> None:
        """The product is worked out in the wide dtype. What the objective keeps of a number a token is left out."""
        tape.take(self.outside(self.hidden), self._scales())
        tape.take(self.wide(self.outside(self.hidden)) if self.mixed else 0, self.region_tokens * self.exact_bytes)

    def _chunked_head_forward(self, tape: Tape, unit: Unit, summed: bool, keeps: bool) -> None:
        """In one pass it ends with its input's gradient, in two with the norm's output and log-sums."""
        h, numbers = self.outside(self.hidden), 2 * self._log_sums()
        one_pass = keeps and not self.sizes.numbers.two_passes
        tape.take(h, self._scales(), numbers, h if one_pass else 0)
        self._in_chunks(tape, unit, summed, one_pass)
        tape.give(numbers if one_pass or not keeps else numbers - self._log_sums())
        tape.give(h if one_pass or not keeps else 0)

    def _in_chunks(self, tape: Tape, unit: Unit, summed: bool, gradients: bool) -> None:
        """At the fullest moment a chunk's logits are there, the next one's h on its way, the last one's dh too."""
        chunks = sum(count for _, count in self.sizes.loss_chunks())
        here = self._chunk(self.hidden)  # of all ranks
        part = self.sizes.chunk_tokens * self.hidden * self.element_bytes
        arrives, leaves = (here, here + part) if self.gathers else (0, here)
        leaves = leaves if gradients else 0
        for number in range(min(chunks, 3)):
            tape.take(arrives if number == 0 else 0, arrives if number + 1 < chunks else 0)
            tape.take(self.logits())
            tape.take(leaves)
            self._weight_gradient(tape, unit.projection, summed or number > 0, queues=not gradients)
            tape.give(self.logits(), arrives, leaves if number else 0)
        tape.give(leaves)

    def _chunk(self, columns: int) -> int:
        """Bytes of [a chunk's tokens of all ranks, columns]."""
        ranks = self.region_tokens // self.outer_tokens
        return ranks * self.sizes.chunk_tokens * columns * self.element_bytes

    def _head_backward(self, tape: Tape, unit: Unit, summed: bool, queues: bool) -> None:
        if unit.kind == "scalar_head":
            tape.take(self.outside(self.hidden))
            tape.give(self.outside(self.hidden) if unit.projection.trained and not queues else 0)
        elif not self.chunked:
            tape.give(self._losses())
            self._enter_backward(tape, unit.projection, summed, queues)
        elif self.sizes.numbers.two_passes:
            tape.take(self.outside(self.hidden))
            self._in_chunks(tape, unit, summed, gradients=True)
            tape.give(self.outside(self.hidden), self._log_sums())
        self._norm_backward(tape)

    def _embedding_backward(self, tape: Tape, unit: Unit, summed: bool, queues: bool) -> None:
        embed = unit.weights["embed"]
        tape.take(self._gathered() if embed.trained else 0)
        self._weight_gradient(tape, embed, summed, queues)
