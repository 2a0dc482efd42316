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
parallel/context.py).
"""

from megatron_lite.parallel.sizes import StageSizes, Unit


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

    Attention that minds documents computes whole scores and is left out.
    """

    def __init__(self, sizes: StageSizes):
        self.sizes, config, resolved = sizes, sizes.config, sizes.resolved
        model, tensor, context = config.model, resolved.tensor, resolved.context
        self.element, self.exact, self.mixed = sizes.element, sizes.exact, sizes.exact != sizes.element
        self.tokens = sizes.tokens
        self.gathers = config.parallel.sequence and tensor > 1
        self.outer = self.tokens // tensor if config.parallel.sequence else self.tokens
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
        self.pads = resolved.padded_vocab_size != model.vocab_size
        self.permutes = config.train.micro_batch_size > 1  # then [B, T] attention is copied to be multiplied as [T, B]

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
            return self.tokens * 9  # the row of each token, and whether it is here
        if unit.kind == "head":
            # Softmax; log-sum-exps, here, over all ranks and squared; targets and three masks.
            return self.outside(2 * self.hidden) + self._scales() + self.inside(self.vocabulary) + self._losses()
        if unit.recompute == "full":
            return self.outside(self.hidden)
        kept = self.outside(4 * self.hidden) + 2 * self._scales() + self.inside(2 * self.feed)
        if unit.recompute == "selective":
            return kept + self.inside(self.packed)
        return kept + self.inside(self.feed) + self._attention_saved()

    def queued(self, unit: Unit) -> int:
        """Between an input backward and its weight backward."""
        if unit.kind == "embedding":
            return self.inside(self.hidden) + self.tokens * 9
        if unit.kind == "head":
            return self.inside(self.vocabulary) + self.outside(self.hidden)
        products = self.inside(2 * self.hidden + self.packed + self.queries + 3 * self.feed)
        return products + self.outside(2 * self.hidden)

    def _scales(self) -> int:
        return self.outer * self.exact

    def _losses(self) -> int:
        return self.tokens * (3 * self.exact + 8 + 3)

    def _attention_saved(self) -> int:
        returned = self.inside(self.queries) if self.swaps > 1 else 0
        return self.inside(self.attended + self.queries) + returned + self.tokens * self.heads * self.exact

    def logits(self) -> int:
        """At the fullest moment of the head's forward: logits, in float32 too where they are not, and their softmax."""
        logits = self.inside(self.vocabulary)
        return logits + self.wide(logits) * (2 if self.mixed else 1)

    # What an action takes while it runs

    def forward(self, unit: Unit) -> Tape:
        """Beside its input, which is there."""
        tape = Tape()
        if unit.kind == "embedding":
            tape.take(self.tokens * 9, self.inside(self.hidden), self.inside(self.hidden))
        elif unit.kind == "head":
            self._head_forward(tape)
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
        products = [(self.vocabulary, self.hidden)]
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
        self._norm_forward(tape)
        self._enter(tape, packed)
        tape.give(h + self._scales() if lost else 0)
        self._attention_forward(tape)
        self._leave(tape, self.inside(self.queries) if self.permutes else 0)
        tape.give(0 if recompute == "none" else self._attention_saved())
        self._norm_forward(tape)
        tape.give(0 if recompute == "selective" else packed)
        self._enter(tape, fed)
        tape.give(h + self._scales() if lost else 0)
        tape.take(self.inside(self.feed))
        self._leave(tape, 0)
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
        tape.take(self.outside(self.hidden))  # the sum with the residual's gradient
        tape.give(self.outside(2 * self.hidden))  # the norm's input too
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

    def _attention_forward(self, tape: Tape) -> None:
        """Ends with what it saves taken."""
        packed, wide = self.inside(self.attended), self.wide(self.inside(self.attended))
        if self.swaps > 1:
            copied = packed if self.attended != self.packed else 0
            tape.take(copied, packed, packed)
            tape.give(copied, packed)
        tape.take(wide, packed if self.mixed else 0)
        tape.give(wide if self.mixed else 0)
        tape.take(packed)
        tape.give(packed)
        output, log_sum = self.inside(self.queries), self.tokens * self.heads * self.exact
        if self.ring > 1:
            self._ring_forward(tape, output, log_sum)
        else:
            tape.take(output, log_sum)
        if self.swaps > 1:
            tape.take(output, output)
            tape.give(output, packed)

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
        tape.take(packed)
        tape.take(self.wide(packed), packed if self.mixed else 0)
        tape.give(2 * packed, self.wide(packed) if self.mixed else 0)

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
        logits = self.inside(self.vocabulary)
        self._norm_forward(tape)
        self._enter(tape, logits)
        tape.take(self._losses())
        wide = self.wide(logits)
        tape.take(wide if self.mixed else 0, wide)
        tape.give(wide if self.mixed else 0)
        tape.take(logits if self.mixed else 0)

    def _head_backward(self, tape: Tape, summed: bool, queues: bool) -> None:
        logits = self.inside(self.vocabulary)
        tape.take(self.wide(logits) if self.mixed else 0)
        if self.pads:
            tape.take(self.wide(logits))
            tape.give(self.wide(logits) if self.mixed else 0)
        tape.take(logits if self.mixed else 0)
        tape.give(self.wide(logits) if self.mixed else 0)
        tape.give(logits if self.mixed or self.pads else 0, self._losses())
        self._enter_backward(tape, self.vocabulary * self.hidden, logits, summed, queues)
        self._norm_backward(tape)

    def _embedding_backward(self, tape: Tape, summed: bool, queues: bool) -> None:
        tape.take(self._gathered())
        if not queues:
            self._rows(tape, summed)

    def _rows(self, tape: Tape, summed: bool) -> None:
        rows = self.inside(self.hidden)
        tape.take(rows)
        if not summed:
            tape.take_gradient(self.vocabulary * self.hidden * self.exact)
        tape.take(self.wide(rows) if self.mixed else 0)

    # Operations

    def _gathered(self) -> int:
        return self.inside(self.hidden) if self.gathers else 0

    def _norm_forward(self, tape: Tape) -> None:
        x = self.outside(self.hidden)
        wide = self.wide(x)
        tape.take(self._scales(), wide if self.mixed else 0, wide, x if self.mixed else 0)
        tape.give(2 * wide if self.mixed else 0)

    def _norm_backward(self, tape: Tape) -> None:
        """Its gradient in, its gradient out; what it saved is freed."""
        x = self.outside(self.hidden)
        wide = self.wide(x)
        tape.take(2 * wide, (wide + x) if self.mixed else 0)
        tape.give(wide, 2 * wide if self.mixed else 0, x, self._scales())

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

    def _leave(self, tape: Tape, copied: int) -> None:
        """The product after attention or SwiGLU, and its sum over tensor ranks. `copied`: its input in order."""
        tape.take(copied, self.inside(self.hidden))
        tape.give(copied)
        if self.gathers:
            tape.take(self.outside(self.hidden))
            tape.give(self.inside(self.hidden))

    def _weight_gradient(self, tape: Tape, elements: int, summed: bool, queues: bool) -> None:
        """The product, and the sum that it makes or is added to."""
        if queues:
            return
        product = elements * self.element if self.mixed else 0
        tape.take(product)
        if not summed:
            tape.take_gradient(elements * self.exact)
        tape.give(product)
