"""Closed forms of what the operations that units are made of take while they run, told as a `Tape`, line after line of
the program (parallel/tensor.py, parallel/context.py, model/operations.py).
"""

from megatron_lite.kernels.costs import PARTIALS
from megatron_lite.planning.sizes import LocalWeight, StageSizes


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


class OperationMemory:
    """The forms, for the sizes of a stage: of its last tensor rank, which has the vocabulary's padding if there is any.

    Attention within documents computes whole scores and is left out.
    """

    def __init__(self, sizes: StageSizes):
        self.sizes, config, resolved = sizes, sizes.config, sizes.resolved
        model, tensor, context = config.model, resolved.tensor, resolved.context
        self.element_bytes, self.exact_bytes = sizes.element_bytes, sizes.exact_bytes
        self.mixed = self.exact_bytes != self.element_bytes
        self.region_tokens, self.outer_tokens = sizes.region_tokens, sizes.outer_tokens
        self.gathers = config.parallel.sequence and tensor > 1
        self.hidden, self.feed = model.hidden_size, model.intermediate_size // tensor
        self.heads = model.num_attention_heads // tensor
        key_values = model.num_key_value_heads // tensor
        self.ring = context if config.parallel.context_kind == "ring" else 1
        self.swaps = context if config.parallel.context_kind == "ulysses" else 1
        self.head_dim = resolved.head_dim
        self.queries, self.keys = self.heads * resolved.head_dim, 2 * key_values * resolved.head_dim
        self.packed = self.queries + self.keys
        self.copies = max(1, self.swaps // key_values)  # of a key-value head, where ranks are more (ulysses)
        self.attended = self.queries + self.keys * self.copies
        self.vocabulary = resolved.padded_vocab_size // tensor

    # Sizes

    def inside(self, columns: int) -> int:
        """Bytes of [N, columns] in the compute dtype."""
        return self.region_tokens * columns * self.element_bytes

    def outside(self, columns: int) -> int:
        """Bytes of [n, columns] in the compute dtype."""
        return self.outer_tokens * columns * self.element_bytes

    def wide(self, size: int) -> int:
        """Bytes in float32 (float64 in a float64 run) of what takes `size`."""
        return size // self.element_bytes * self.exact_bytes

    # Attention

    def _attention_saved(self, returned: bool = True) -> int:
        """`returned`: what came back of exchanged heads, too, which the product after attention needs."""
        output = self.inside(self.queries) if returned and self.swaps > 1 else 0
        return self.inside(self.attended + self.queries) + output + self.region_tokens * self.heads * self.exact_bytes

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
        output, log_sum = self.inside(self.queries), self.region_tokens * self.heads * self.exact_bytes
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

    def _attention_backward(self, tape: Tape, saved: int) -> None:
        """Output's gradient and what was `saved` in, the packed gradient out."""
        packed, output = self.inside(self.attended), self.inside(self.queries)
        if self.ring > 1:
            ring = self._ring_backward()
            tape.take(ring)
            tape.give(ring)
        tape.take(packed)
        tape.give(output + saved)

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

    # Norms and products

    def _gathered(self) -> int:
        return self.inside(self.hidden) if self.gathers else 0

    def _norm_backward(self, tape: Tape) -> None:
        """Its gradient and the residual's in, its gradient out; what it saved is freed."""
        x = self.outside(self.hidden)
        partials = min(PARTIALS, self.outer_tokens) * self.hidden * self.exact_bytes
        tape.take(x, partials)
        tape.give(partials, 2 * x, self._scales())

    def _head_norms_saved(self) -> int:
        """Queries and keys as they were, and the inverse RMS of each head."""
        return sum(x + scales for x, scales in self._normed())

    def _head_norms_forward(self, tape: Tape) -> None:
        """In place, from what is saved; the one before's result is there until the next one's is."""
        for x, scales in self._normed():
            tape.take(2 * x, scales)
        tape.give(*(x for x, _ in self._normed()))

    def _head_norms_backward(self, tape: Tape) -> None:
        """In place: what was saved is freed at the end."""
        for x, scales in self._normed():
            partials = min(PARTIALS, scales // self.exact_bytes) * self.head_dim * self.exact_bytes
            tape.take(2 * x, partials)
            tape.give(x, partials)
        tape.give(*(x for x, _ in self._normed()), self._head_norms_saved())

    def _normed(self) -> list[tuple[int, int]]:
        """(bytes, bytes of inverse RMS) of queries and of keys, where their heads are normalized."""
        if not self.sizes.config.model.qk_norm:
            return []
        columns = (self.queries, self.keys // 2)
        return [(self.inside(n), self.region_tokens * n // self.head_dim * self.exact_bytes) for n in columns]

    def _scales(self) -> int:
        """The inverse RMS of each token."""
        return self.outer_tokens * self.exact_bytes

    def _enter(self, tape: Tape, output: int) -> None:
        tape.take(self._gathered(), output)
        tape.give(self._gathered())

    def _enter_backward(self, tape: Tape, weight: LocalWeight, summed: bool, queues: bool) -> None:
        """The output's gradient in, and the input where it was kept; the input's gradient out. What a weight gradient
        needs stays where that is left for later.
        """
        later = weight.trained and queues
        gathered = self._gathered() if weight.trained and not queues else 0
        tape.take(gathered, self.inside(self.hidden))
        tape.take(self.outside(self.hidden) if self.gathers else 0)
        self._weight_gradient(tape, weight, summed, queues)
        tape.give(gathered, self.inside(self.hidden) if self.gathers else 0)
        tape.give(0 if later else self.inside(weight.rows))
        tape.give(self.outside(self.hidden) if weight.trained and not queues else 0)

    def _leave(self, tape: Tape) -> None:
        """The product after attention or SwiGLU, and its sum over tensor ranks."""
        tape.take(self.inside(self.hidden))
        if self.gathers:
            tape.take(self.outside(self.hidden))
            tape.give(self.inside(self.hidden))

    def _weight_gradient(self, tape: Tape, weight: LocalWeight, summed: bool, queues: bool) -> None:
        """The sum that the product is added to, where it is not there yet."""
        if weight.trained and not queues and not summed:
            tape.take_gradient(weight.elements * self.exact_bytes)
