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

What it takes while it runs is told as a `Tape`, line after line of the program (model/, parallel/tensor.py,
parallel/context.py). Kernels take nothing beside their results; PyTorch's operations in their place may, for a moment.
"""

from megatron_lite.kernels.costs import PARTIALS
from megatron_lite.planning.sizes import StageSizes, Unit


class Tape:
    """Bytes taken and given back in the order of a program; `peak` is the most at once, beside what was there before.

    `gradients` are those of them that are full weight gradients, which stay; `gradients_at_peak` as it says.
    """

    def __init__(self):
        self.live = self.peak = self.gradients = self.gradients_at_peak = 0

    def take(self, *sizes: int) -> None:
        self.live += sum(sizes)
        if self.live > self.peak:
            self.peak, self.gradients_at_peak = self.live, self.gradients

    def give(self, *sizes: int) -> None:
        self.live -= sum(sizes)

    def take_gradient(self, size: int) -> None:
        self.gradients += size
        self.take(size)


class UnitMemory:
    """The forms, for the sizes of a stage: of its last tensor rank, which has the vocabulary's padding if there is any.

    Attention within documents computes whole scores and is left out.
    """

    def __init__(self, sizes: StageSizes):
        self.sizes, config, resolved = sizes, sizes.config, sizes.resolved
        model, tensor, context = config.model, resolved.tensor, resolved.context
        self.element, self.exact, self.mixed = sizes.element, sizes.exact, sizes.exact != sizes.element
        self.tokens = sizes.tokens
        self.gathers = config.parallel.sequence and tensor > 1
        self.outer = sizes.outer
        self.hidden, self.feed = model.hidden_size, model.intermediate_size // tensor
        self.heads = model.num_attention_heads // tensor
        key_values = model.num_key_value_heads // tensor
        self.ring = context if config.parallel.context_kind == "ring" else 1
        self.swaps = context if config.parallel.context_kind == "ulysses" else 1
        self.queries, self.keys = self.heads * resolved.head_dim, 2 * key_values * resolved.head_dim
        self.packed = self.queries + self.keys
        self.copies = max(1, self.swaps // key_values)  # of a key-value head, where ranks are more (ulysses)
        self.attended = self.queries + self.keys * self.copies
        self.vocabulary = resolved.padded_vocab_size // tensor

    # Sizes

    def inside(self, columns: int) -> int:
        """Bytes of [N, columns] in the compute dtype."""
        return self.tokens * columns * self.element

    def outside(self, columns: int) -> int:
        """Bytes of [n, columns] in the compute dtype."""
        return self.outer * columns * self.element

    def wide(self, size: int) -> int:
        """Bytes in float32 (float64 in a float64 run) of what takes `size`."""
        return size // self.element * self.exact

    # What stays

    def saved(self, unit: Unit) -> int:
        """Between forward and backward, the unit's input included."""
        if unit.kind == "embedding":
            return self.tokens * 8  # the row of each token
        if unit.kind == "head":
            kept = self.outside(2 * self.hidden) + self._scales()  # in chunks the second is the first's gradient
            return kept if self.chunked else kept + self.inside(self.vocabulary) + self._losses()
        if unit.recompute == "full":
            return self.outside(self.hidden)
        kept = self.outside(4 * self.hidden) + 2 * self._scales() + self.inside(2 * self.feed)
        if unit.recompute == "selective":
            return kept + self.inside(self.packed)
        return kept + self.inside(self.feed) + self._attention_saved()

    def queued(self, unit: Unit) -> int:
        """Between an input backward and its weight backward."""
        if unit.kind == "embedding":
            return self.inside(self.hidden) + self.tokens * 8
        if unit.kind == "head":
            return 0 if self.chunked else self.inside(self.vocabulary) + self.outside(self.hidden)
        products = self.inside(2 * self.hidden + self.packed + self.queries + 3 * self.feed)
        return products + self.outside(2 * self.hidden)

    def _scales(self) -> int:
        return self.outer * self.exact

    def _losses(self) -> int:
        """Log-sum-exps, as they are and counted ones; targets; two masks of what counts."""
        return self.tokens * (2 * self.exact + 8 + 2)

    def _attention_saved(self) -> int:
        returned = self.inside(self.queries) if self.swaps > 1 else 0
        return self.inside(self.attended + self.queries) + returned + self.tokens * self.heads * self.exact

    @property
    def chunked(self) -> bool:
        """Whether the head's loss, and the gradients of its product, are worked out chunk by chunk in forward."""
        return self.sizes.chunked

    def logits(self) -> int:
        """The head's at once, over which their gradient is written."""
        return self._chunk(self.vocabulary) if self.chunked else self.inside(self.vocabulary)

    # What an action takes while it runs

    def forward(self, unit: Unit, summed: bool) -> Tape:
        """Beside its input, which is there. `summed`: its full gradients are there already."""
        tape = Tape()
        if unit.kind == "embedding":
            tape.take(self.tokens * 17, self.inside(self.hidden), self.inside(self.hidden))
        elif unit.kind == "head":
            self._chunked_head_forward(tape, summed) if self.chunked else self._head_forward(tape)
        else:
            self._block_forward(tape, unit.recompute)
        return tape

    def backward(self, unit: Unit, summed: bool, queues: bool) -> Tape:
        """Beside what it saved and the gradient of its output. `summed`: its full gradients are there already;
        `queues`: weight gradients are left for later.
        """
        tape = Tape()
        if unit.kind == "embedding":
            self._embedding_backward(tape, summed, queues)
        elif unit.kind == "head":
            self._head_backward(tape, summed, queues)
        else:
            if unit.recompute == "full":
                self._block_forward(tape, "none")
                tape.give(self.outside(self.hidden))
            self._block_backward(tape, unit.recompute, summed, queues)
        return tape

    def weight_backward(self, unit: Unit, summed: bool) -> Tape:
        """Beside what was queued."""
        tape = Tape()
        if unit.kind == "embedding":
            self._rows(tape, summed)
            return tape
        products = [] if self.chunked else [(self.vocabulary, self.hidden)]
        if unit.kind == "block":
            products = self.sizes.weights["block"][3::-1]
        for rows, columns in products:
            enters = columns == self.hidden  # its input is gathered again
            tape.take(self._gathered() if enters else 0)
            self._weight_gradient(tape, rows * columns, summed, queues=False)
            tape.give(self._gathered() if enters else 0)
        return tape

    # Blocks

    def _block_forward(self, tape: Tape, recompute: str) -> None:
        """Ends with what it saved, but its input, and its output taken; nothing but the output with `full`."""
        h, packed, fed = self.outside(self.hidden), self.inside(self.packed), self.inside(2 * self.feed)
        lost = recompute == "full"
        tape.take(h, self._scales())
        self._enter(tape, packed)
        tape.give(h + self._scales() if lost else 0)
        self._attention_forward(tape)
        self._leave(tape)
        tape.give(0 if recompute == "none" else self._attention_added())
        tape.give(packed if lost or (recompute == "none" and self.swaps > 1) else 0)
        tape.take(2 * h, self._scales())  # the sum with the residual, and its norm
        tape.give(h)
        self._enter(tape, fed)
        tape.give(h + self._scales() if lost else 0)
        tape.take(self.inside(self.feed))
        self._leave(tape)
        tape.give(0 if recompute == "none" else self.inside(self.feed))
        tape.give(fed + h if lost else 0)

    def _block_backward(self, tape: Tape, recompute: str, summed: bool, queues: bool) -> None:
        """Begins with what `_block_forward` saved; ends with its input's gradient taken and its weights' or queues."""
        (qkv, o, gate_up, down) = (rows * columns for rows, columns in self.sizes.weights["block"][:4])
        again = recompute == "selective"
        # SwiGLU
        tape.take(self._gathered())
        tape.take(self.inside(self.feed) if again else 0)
        tape.take(self.inside(self.feed))
        if again:
            tape.take(self.inside(2 * self.feed))
            tape.give(self.inside(self.feed))
        self._weight_gradient(tape, down, summed, queues)
        tape.give(0 if queues else self.inside(self.feed) + self._gathered())
        if not again:
            tape.take(self.inside(2 * self.feed))
            tape.give(self.inside(self.feed))
        tape.give(self.inside(2 * self.feed))
        self._enter_backward(tape, gate_up, self.inside(2 * self.feed), summed, queues)
        self._norm_backward(tape)
        # Attention
        tape.take(self._gathered())
        if again:
            self._attention_forward(tape)
        tape.take(self.inside(self.queries))
        if again:
            held = self.inside(2 * self.queries)  # its output, needed below, and the gradient that autograd was given
            self._attention_backward(tape, held)
            tape.give(held)
        self._weight_gradient(tape, o, summed, queues)
        tape.give(0 if queues else self._gathered())
        if not again:
            self._attention_backward(tape)
        self._enter_backward(tape, qkv, self.inside(self.packed), summed, queues)
        self._norm_backward(tape)

    def _attention_added(self) -> int:
        """What attention saves beside the packed projection that it is given."""
        return self._attention_saved() - (self.inside(self.packed) if self.swaps == 1 else 0)

    def _attention_forward(self, tape: Tape) -> None:
        """Ends with what it adds to what is saved taken."""
        if self.swaps > 1:
            packed = self.inside(self.attended)
            copied = packed if self.attended != self.packed else 0
            tape.take(copied, packed, packed)
            tape.give(copied, packed)
        output, log_sum = self.inside(self.queries), self.tokens * self.heads * self.exact
        if self.ring > 1:
            self._ring_forward(tape, output, log_sum)
        else:
            tape.take(output, log_sum)
        if self.swaps > 1:
            tape.take(output, output)
            tape.give(output)

    def _ring_forward(self, tape: Tape, output: int, log_sum: int) -> None:
        """The sum so far, this block's part and that times its share; the blocks in hand, leaving and coming."""
        blocks = self.inside(self.keys) * (3 if self.ring > 2 else 2)
        total = self.wide(output)
        tape.take(blocks, total, log_sum, output, output if self.mixed else log_sum)
        tape.give(output if self.mixed else log_sum, blocks)
        tape.take(blocks if self.ring > 2 else self.inside(self.keys), total, 4 * log_sum)
        tape.give(blocks if self.ring > 2 else self.inside(self.keys), total, 4 * log_sum, output)
        tape.take(output if self.mixed else 0)
        tape.give(total if self.mixed else 0)

    def _attention_backward(self, tape: Tape, kept: int = 0) -> None:
        """Output's gradient in and what was saved, the packed gradient out, and of what was saved `kept`."""
        packed, output = self.inside(self.attended), self.inside(self.queries)
        if self.ring > 1:
            ring = self._ring_backward()
            tape.take(ring)
            tape.give(ring)
        tape.take(packed)
        tape.give(output + self._attention_saved() - kept)

    def _ring_backward(self) -> int:
        """At the fullest moment, while a step's part is worked out: the blocks in hand, leaving and coming (on two
        ranks the last step passes none on); this part, of half the keys; the queries' sum, the blocks' that came and
        is leaving; and the part before, which until a fourth step is the sums themselves where dtypes agree.
        """
        block, output = self.inside(self.keys), self.inside(self.queries)
        in_hand = (3 if self.ring > 2 else 1) * block
        part = output + block // 2
        before = output + block if self.mixed else (part if self.ring > 3 else 0)
        return in_hand + part + before + self.wide(output) + 3 * self.wide(block)

    # Head and embedding

    def _head_forward(self, tape: Tape) -> None:
        tape.take(self.outside(self.hidden), self._scales())
        self._enter(tape, self.inside(self.vocabulary))
        tape.take(self._losses())

    def _chunked_head_forward(self, tape: Tape, summed: bool) -> None:
        """At the fullest moment a chunk's logits are there, the next one's h on its way, the last one's dh too."""
        chunks = sum(count for _, count in self.sizes.loss_chunks())
        here = self._chunk(self.hidden)  # of all ranks
        part = self.sizes.chunk * self.hidden * self.element
        arrives, leaves = (here, here + part) if self.gathers else (0, here)
        tape.take(self.outside(self.hidden), self._scales(), 2 * self.tokens * self.exact, self.outside(self.hidden))
        for number in range(min(chunks, 3)):
            tape.take(arrives if number == 0 else 0, arrives if number + 1 < chunks else 0)
            tape.take(self.logits())
            tape.take(leaves)
            self._weight_gradient(tape, self.vocabulary * self.hidden, summed or number > 0, queues=False)
            tape.give(self.logits(), arrives, leaves if number else 0)
        tape.give(leaves, 2 * self.tokens * self.exact, self.outside(self.hidden))

    def _chunk(self, columns: int) -> int:
        """Bytes of [a chunk's tokens of all ranks, columns]."""
        ranks = self.tokens // self.outer
        return ranks * self.sizes.chunk * columns * self.element

    def _head_backward(self, tape: Tape, summed: bool, queues: bool) -> None:
        if self.chunked:
            self._norm_backward(tape)
            return
        tape.give(self._losses())
        self._enter_backward(tape, self.vocabulary * self.hidden, self.inside(self.vocabulary), summed, queues)
        self._norm_backward(tape)

    def _embedding_backward(self, tape: Tape, summed: bool, queues: bool) -> None:
        tape.take(self._gathered())
        if not queues:
            self._rows(tape, summed)

    def _rows(self, tape: Tape, summed: bool) -> None:
        if not summed:
            tape.take_gradient(self.vocabulary * self.hidden * self.exact)

    # Operations

    def _gathered(self) -> int:
        return self.inside(self.hidden) if self.gathers else 0

    def _norm_backward(self, tape: Tape) -> None:
        """Its gradient and the residual's in, its gradient out; what it saved is freed."""
        x = self.outside(self.hidden)
        partials = min(PARTIALS, self.outer) * self.hidden * self.exact
        tape.take(x, partials)
        tape.give(partials, 2 * x, self._scales())

    def _enter(self, tape: Tape, output: int) -> None:
        tape.take(self._gathered(), output)
        tape.give(self._gathered())

    def _enter_backward(self, tape: Tape, elements: int, gradient: int, summed: bool, queues: bool) -> None:
        """The output's gradient in and the input kept, the input's gradient out."""
        gathered = 0 if queues else self._gathered()
        tape.take(gathered, self.inside(self.hidden))
        tape.take(self.outside(self.hidden) if self.gathers else 0)
        self._weight_gradient(tape, elements, summed, queues)
        tape.give(gathered, self.inside(self.hidden) if self.gathers else 0)
        tape.give(0 if queues else gradient + self.outside(self.hidden))

    def _leave(self, tape: Tape) -> None:
        """The product after attention or SwiGLU, and its sum over tensor ranks."""
        tape.take(self.inside(self.hidden))
        if self.gathers:
            tape.take(self.outside(self.hidden))
            tape.give(self.inside(self.hidden))

    def _weight_gradient(self, tape: Tape, elements: int, summed: bool, queues: bool) -> None:
        """The sum that the product is added to, where it is not there yet."""
        if not queues and not summed:
            tape.take_gradient(elements * self.exact)
