"""What each operation has to move and compute, in closed form: bytes and floating-point operations.

`read` and `written` count each distinct element of inputs and outputs once. `again` is what a kernel asks for beyond
that, with the reason: the table's exceptions. Tests hold all three against what the kernels ask for, lane by lane;
benchmarks divide by time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

PARTIALS = 128  # in so many parts a norm's weight gradient is summed, whatever the device
KEPT = 8192  # columns of a norm's weight that its backward keeps in registers beside a row and its gradient


@dataclass(frozen=True)
class Cost:
    """Bytes and operations of one call."""

    read: int
    written: int
    again: int = 0
    flops: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.read + other.read, self.written + other.written, self.again + other.again, self.flops + other.flops
        )

    @property
    def moved(self) -> int:
        """Bytes that have to pass memory."""
        return self.read + self.written


def rms_norm(rows: int, columns: int, element: int, exact: int = 4) -> Cost:
    """Each row's program asks for the weight; all but the first find it in the cache."""
    x = rows * columns * element
    weight = columns * element
    return Cost(x + weight, x + rows * exact, (rows - 1) * weight, 5 * rows * columns)


def add_rms_norm(rows: int, columns: int, element: int, exact: int = 4) -> Cost:
    x = rows * columns * element
    return rms_norm(rows, columns, element, exact) + Cost(x, x, 0, rows * columns)


def rms_norm_backward(rows: int, columns: int, element: int, adds: bool, exact: int = 4) -> Cost:
    """Each of the partial sums' programs asks for the weight; the partial sums are outputs. Of wider rows than KEPT all
    do, and twice for x.
    """
    x, weight, parts = rows * columns * element, columns * element, min(rows, PARTIALS)
    read = (3 if adds else 2) * x + rows * exact + weight
    again = (parts - 1) * weight if columns <= KEPT else (rows - 1) * weight + x
    return Cost(read, x + parts * columns * exact, again, 12 * rows * columns)


def add_partials_(parts: int, columns: int, exact: int = 4) -> Cost:
    return Cost((parts + 1) * columns * exact, columns * exact, 0, parts * columns)


def swiglu(elements: int, element: int) -> Cost:
    """`elements` of y."""
    return Cost(2 * elements * element, elements * element, 0, 5 * elements)


def swiglu_backward(elements: int, element: int) -> Cost:
    return Cost(3 * elements * element, 2 * elements * element, 0, 12 * elements)


def rope_(rows: int, heads: int, head_dim: int, positions: int, element: int, exact: int = 4) -> Cost:
    """`rows` of qkv at so many different positions, `heads` of each turned: the values are not among them.

    Each program turns one head and asks for its rows' positions and angles.
    """
    turned, angles = rows * heads * head_dim * element, head_dim * exact
    asked = rows * heads * (angles + 4)
    once = rows * 4 + positions * angles
    return Cost(turned + once, turned, asked - once, 3 * rows * heads * head_dim)


def embedding_backward_(
    tokens: int, ours: int, rows: int, columns: int, element: int, exact: int = 4, block: int = 1024
) -> Cost:
    """`tokens`, of which `ours` are looked up here, in `rows` different rows.

    The sort is torch's and not counted. Each program of `block` columns asks for its token and the one before; the
    first of a row also for where the row ends and for its positions. All of these have 8 bytes.
    """
    gradient, blocks = rows * columns * exact, -(-columns // block)
    once = 8 * (tokens + rows + ours)
    asked = 8 * blocks * (2 * tokens + rows + ours)
    return Cost(gradient + ours * columns * element + once, gradient, asked - once, (ours + rows) * columns)


def adamw_(size: int, element: int, exact: int = 4, clips: bool = True, block: int = 1024) -> Cost:
    """16 bytes read and 12 written a parameter, and `element` for the copy (0: none). Each block asks for the clip."""
    clip = exact if clips else 0
    blocks = -(-size // block)
    return Cost(4 * size * exact + clip, size * (3 * exact + element), (blocks - 1) * clip, 15 * size)


def square_norm(lengths: Sequence[int], exact: int = 4, block: int = 65536) -> Cost:
    """Elements of each shard. A block has a table row of 16 bytes and one partial sum."""
    blocks, elements = sum(-(-length // block) for length in lengths), sum(lengths)
    return Cost(elements * exact + 16 * blocks, blocks * exact, 0, 2 * elements)


def add_product_(rows: int, columns: int, tokens: int, element: int, exact: int = 4) -> Cost:
    """A matrix product that reads and writes its sum [rows, columns] in place."""
    total, operands = rows * columns * exact, tokens * (rows + columns) * element
    return Cost(total + operands, total, 0, 2 * tokens * rows * columns)


def padded(real: int, columns: int, element: int) -> int:
    """Real columns up to the next 128 bits, as far as a row goes: loads of single elements would cost more."""
    return min(columns, -(-real * element // 16) * 16 // element)


def cross_entropy_statistics(rows: int, columns: int, real: int, element: int, exact: int = 4) -> Cost:
    """The vocabulary's columns once, of the padding what its last 128 bits have; a label of 8 bytes."""
    return Cost(rows * (padded(real, columns, element) * element + 8), rows * 2 * exact, 0, 4 * rows * real)


def cross_entropy_gradient_(rows: int, columns: int, real: int, element: int, exact: int = 4) -> Cost:
    """Padding is written and hardly read. Beside its label a row has three numbers: log-sum and two gradients."""
    read = rows * (padded(real, columns, element) * element + 8 + 3 * exact)
    return Cost(read, rows * columns * element, 0, 3 * rows * real)


def entropy_statistics(rows: int, columns: int, real: int, element: int, exact: int = 4) -> Cost:
    """As cross_entropy_statistics, and two more numbers of a row."""
    return cross_entropy_statistics(rows, columns, real, element, exact) + Cost(0, rows * 2 * exact, 0, 2 * rows * real)


def entropy_gradient_(rows: int, columns: int, real: int, element: int, exact: int = 4) -> Cost:
    """As cross_entropy_gradient_; a row has five numbers: the mean logit and the entropy's gradient too."""
    return cross_entropy_gradient_(rows, columns, real, element, exact) + Cost(rows * 2 * exact, 0, 0, 3 * rows * real)


@dataclass(frozen=True)
class Attention:
    """Sizes of attention. `document`: sequences are documents of this length, known to the kernel as ranges (0: none).

    Without documents and `causal` every query sees every key.
    """

    batch: int
    heads: int
    groups: int
    queries: int
    keys: int
    head_dim: int
    causal: bool = False
    document: int = 0

    def rows(self, heads: int, length: int) -> int:
        return self.batch * heads * length

    def keys_visited(self, tile: int) -> int:
        """Keys asked for by one head's tiles of queries: up to a tile's last query, from its first one's document."""
        starts = range(0, self.queries, tile)
        if not (self.causal or self.document):
            return len(starts) * self.keys
        document = self.document or self.queries
        return sum(min(start + tile, self.queries) - start // document * document for start in starts)

    def queries_visited(self, tile: int) -> int:
        """Queries asked for by one head's tiles of keys: from the first key to the end of the last one's document."""
        starts = range(0, self.keys, tile)
        if not (self.causal or self.document):
            return len(starts) * self.queries
        document = self.document or self.keys
        ends = (min(start + tile, self.keys) - 1 for start in starts)
        return sum(
            min((end // document + 1) * document, self.queries) - start for start, end in zip(starts, ends, strict=True)
        )

    def ranges(self, length: int, tile: int, heads: int) -> Cost:
        """Two numbers a row and four a tile, for each head."""
        if not self.document:
            return Cost(0, 0)
        once, asked = 8 * self.batch * length, self.batch * heads * (8 * length + 16 * -(-length // tile))
        return Cost(once, 0, asked - once)

    def flops(self, products: int) -> int:
        """Products of matrices [T, D] x [D, S]; causal halves them."""
        whole = 2 * products * self.rows(self.heads, self.queries) * self.keys * self.head_dim
        return whole // 2 if self.causal else whole


def attention(size: Attention, element: int, exact: int = 4, tile: int = 128) -> Cost:
    """Keys and values are asked for again by each tile of queries that sees some of them, of each head."""
    q, kv = (size.rows(*x) * size.head_dim * element for x in ((size.heads, size.queries), (size.groups, size.keys)))
    visits = size.rows(size.heads, size.keys_visited(tile)) * size.head_dim * element
    log_sum = size.rows(size.heads, size.queries) * exact
    own = Cost(q + 2 * kv, q + log_sum, 2 * (visits - kv), size.flops(2))
    return own + size.ranges(size.queries, tile, size.heads)


def attention_backward(
    size: Attention, parts: int, element: int, exact: int = 4, tiles: tuple[int, int] = (128, 128)
) -> Cost:
    """Of three kernels, each reading its inputs once and again: `tiles` of queries for dq, and of keys for dk and dv,
    whose program goes over 1 / parts of its group's heads. Partial sums are written and read.
    """
    queries, keys = size.rows(size.heads, size.queries), size.rows(size.groups, size.keys)
    row = size.head_dim * element
    visits = size.rows(size.heads, size.keys_visited(tiles[0]))
    dq = Cost(3 * queries * row + 2 * keys * row + queries * exact, queries * (row + exact),
              2 * (visits - keys) * row, size.flops(5))  # fmt: skip
    visits = size.rows(size.heads, size.queries_visited(tiles[1]))
    sums = 2 * keys * (size.head_dim * exact * parts if parts > 1 else row)
    dkv = Cost(2 * queries * (row + exact) + 2 * keys * row, sums,
               2 * (visits - queries) * (row + exact) + 2 * (parts - 1) * keys * row)  # fmt: skip
    ranges = size.ranges(size.queries, tiles[0], size.heads) + size.ranges(size.keys, tiles[1], size.groups * parts)
    return dq + dkv + ranges + (Cost(sums, 2 * keys * row) if parts > 1 else Cost(0, 0))
