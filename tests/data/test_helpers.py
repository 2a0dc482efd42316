"""The C++ helpers against plain Python that shares nothing with them."""

import numpy as np
import pytest

from megatron_lite.data import _helpers

WORD = 2**64 - 1


def mix(z):
    z = (z + 0x9E3779B97F4A7C15) & WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return z ^ (z >> 31)


def permuted(position, size, seed, stream, epoch):
    half = max(4, ((size - 1).bit_length() + 1) // 2)
    key, keys = mix(mix(mix(seed) ^ stream) ^ epoch), []
    for _ in range(8):
        key = mix(key)
        keys.append(key)
    while True:
        left, right = divmod(position, 1 << half)
        for key in keys:
            left, right = right, left ^ (mix(right ^ key) % (1 << half))
        position = left * (1 << half) + right
        if position < size:
            return position


def sample_starts(lengths, sequence_length):
    places = [(s, offset) for s, length in enumerate(lengths) for offset in range(length)]
    samples = max(len(places) - 1, 0) // sequence_length
    return [list(places[i * sequence_length]) for i in range(samples)]


def blended(weights, size):
    """(data set, sample) of the first `size` places, each time that of the least (k + 1/2) / weight."""
    counts, taken = [0] * len(weights), []
    for _ in range(size):
        times = [
            (count + 0.5) / weight if weight else float("inf") for count, weight in zip(counts, weights, strict=True)
        ]
        chosen = times.index(min(times))
        taken.append((chosen, counts[chosen]))
        counts[chosen] += 1
    return taken


def test_splitmix_gives_the_published_first_outputs_of_seed_1234567():
    # The generator's output n is mix(seed + n * golden gamma); values from the reference implementation's test.
    gamma = 0x9E3779B97F4A7C15
    outputs = [mix((1234567 + n * gamma) & WORD) for n in range(3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 255, 256, 257, 1000, 4097, 10**6, 2**40 + 5, 2**62])
def test_permute_equals_the_python_feistel_network(size):
    rng = np.random.default_rng(size)
    for begin in rng.integers(0, size, 5).tolist():
        seed, stream, epoch = rng.integers(0, 2**63, 3).tolist()
        end = min(begin + 20, size)
        expected = [permuted(i, size, seed, stream, epoch) for i in range(begin, end)]
        assert _helpers.permute(begin, end, size, seed, stream, epoch).tolist() == expected


@pytest.mark.parametrize("size", [1, 2, 5, 63, 64, 65, 1000, 65537, 300_000])
def test_permute_visits_every_sample_once(size):
    assert np.array_equal(np.sort(_helpers.permute(0, size, size, 7, 0, 3)), np.arange(size))


def test_permute_does_not_depend_on_the_range_asked_for():
    whole = _helpers.permute(0, 1000, 1000, 1, 2, 3)
    assert np.array_equal(_helpers.permute(317, 650, 1000, 1, 2, 3), whole[317:650])


@pytest.mark.parametrize("changed", ["seed", "stream", "epoch"])
def test_permute_changes_with_each_part_of_its_key(changed):
    key = {"seed": 1, "stream": 2, "epoch": 3}
    one = _helpers.permute(0, 1000, 1000, **key)
    other = _helpers.permute(0, 1000, 1000, **(key | {changed: key[changed] + 1}))
    assert np.count_nonzero(one == other) < 10  # 1 expected by chance


@pytest.mark.parametrize("size", [3, 5, 24])
def test_every_sample_is_equally_likely_at_every_position(size):
    trials = 4000
    counts = np.zeros((size, size))
    for epoch in range(trials):
        counts[np.arange(size), _helpers.permute(0, size, size, 11, 0, epoch)] += 1
    expected = trials / size
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = (size - 1) ** 2
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


def test_consecutive_positions_are_uncorrelated():
    order = _helpers.permute(0, 100_000, 100_000, 5, 0, 0).astype(float)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(np.arange(100_000), order)[0, 1]) < 0.02


@pytest.mark.parametrize(("begin", "end"), [(-1, 2), (3, 2), (0, 11)])
def test_permute_refuses_positions_outside_the_epoch(begin, end):
    with pytest.raises(IndexError):
        _helpers.permute(begin, end, 10, 0, 0, 0)


@pytest.mark.parametrize("seed", range(40))
def test_sample_index_equals_a_walk_over_every_token(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, rng.integers(1, 40), rng.integers(1, 60)).astype(np.int32)
    first, last = np.sort(rng.integers(0, len(lengths) + 1, 2)).tolist()
    sequence_length = int(rng.integers(1, 50))
    expected = [[s + first, o] for s, o in sample_starts(lengths[first:last].tolist(), sequence_length)]
    assert _helpers.build_sample_index(lengths, first, last, sequence_length).tolist() == expected


# helpers_cpp.build_sample_idx_int32 of megatron-core 0.16.1 over sequences in file order, without its last row.
@pytest.mark.parametrize(
    ("sequence_length", "expected"),
    [
        (4, [[0, 0], [0, 4], [3, 0], [3, 4], [3, 8], [6, 1], [6, 5]]),
        (7, [[0, 0], [2, 2], [3, 6], [6, 2]]),
    ],
)
def test_sample_index_equals_megatrons(sequence_length, expected):
    lengths = np.array([5, 0, 3, 9, 1, 1, 12], np.int32)
    assert _helpers.build_sample_index(lengths, 0, 7, sequence_length).tolist() == expected


def test_sample_index_counts_past_32_bits():
    longest = 2**31 - 1
    lengths = np.full(6, longest, np.int32)
    sequence_length = 2**30
    index = _helpers.build_sample_index(lengths, 0, 6, sequence_length)
    starts = [i * sequence_length for i in range((6 * longest - 1) // sequence_length)]
    assert index.tolist() == [list(divmod(start, longest)) for start in starts]


def test_sample_index_built_by_several_threads_is_that_of_one():
    # Threads are started from a million sequences a thread on.
    lengths = np.random.default_rng(0).integers(0, 4, 3_500_000).astype(np.int32)
    lengths[1_000_000:1_100_000] = 0  # a stretch without tokens about where one thread's part ends
    lengths[2_000_000] = 10**6
    starts = np.arange((int(lengths.sum()) - 1) // 777) * 777
    ends = np.cumsum(lengths, dtype=np.int64)
    sequences = np.searchsorted(ends, starts, side="right")
    offsets = starts - (ends - lengths)[sequences]
    index = _helpers.build_sample_index(lengths, 0, len(lengths), 777)
    assert np.array_equal(index, np.stack([sequences, offsets], 1))
    assert _helpers.count_tokens(lengths, 5, len(lengths)) == int(lengths[5:].sum(dtype=np.int64))


def test_sample_index_reads_unaligned_lengths():
    raw = b"\0" + np.array([5, 6], np.int32).tobytes()
    lengths = np.frombuffer(raw, np.int32, 2, 1)
    assert not lengths.flags.aligned
    assert _helpers.build_sample_index(lengths, 0, 2, 5).tolist() == [[0, 0], [1, 0]]


@pytest.mark.parametrize(("first", "last"), [(-1, 1), (2, 1), (0, 4)])
def test_sample_index_refuses_sequences_that_are_not_there(first, last):
    with pytest.raises(IndexError):
        _helpers.build_sample_index(np.ones(3, np.int32), first, last, 1)


def test_arrays_of_another_type_or_stride_are_refused():
    for lengths in (np.ones(4, np.int64), np.ones(4, np.int32)[::2], np.ones((2, 2), np.int32)):
        with pytest.raises(ValueError, match="contiguous one-dimensional array of int32"):
            _helpers.build_sample_index(lengths, 0, 2, 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.int64])
def test_gather_reads_across_sequences_wherever_they_lie(dtype):
    tokens = np.arange(10, dtype=dtype)
    lengths = np.array([4, 0, 3, 3], np.int32)
    pointers = np.array([6, 0, 0, 3], np.int64) * np.dtype(dtype).itemsize  # not in file order
    rows = [6, 7, 8, 9, 0, 1, 2, 3, 4, 5]
    for offset in range(5):
        for count in range(11 - offset):
            got = _helpers.gather_tokens(tokens, lengths, pointers, 0, 4, offset, count)
            assert got.tolist() == rows[offset : offset + count]


@pytest.mark.parametrize(
    ("sequence", "last", "offset", "count"),
    [(0, 2, 0, 7), (1, 2, 0, 4), (0, 1, 0, 4), (0, 3, 0, 1), (0, 2, 4, 1), (0, 2, -1, 1), (0, 2, 0, -1), (-1, 2, 0, 1)],
)
def test_gather_refuses_to_read_past_its_sequences(sequence, last, offset, count):
    lengths, pointers = np.array([3, 3], np.int32), np.array([0, 6], np.int64)
    with pytest.raises(IndexError):
        _helpers.gather_tokens(np.arange(6, dtype=np.uint16), lengths, pointers, sequence, last, offset, count)


@pytest.mark.parametrize("pointer", [-8, 4, 10**12])
def test_gather_refuses_a_pointer_outside_the_tokens(pointer):
    with pytest.raises(IndexError, match="ends past"):
        tokens = np.arange(6, dtype=np.uint16)
        _helpers.gather_tokens(tokens, np.array([5], np.int32), np.array([pointer], np.int64), 0, 1, 0, 5)


def test_negative_lengths_are_refused_by_all_that_counts_tokens():
    lengths = np.array([5, -2, 5], np.int32)
    for count in (_helpers.count_tokens, lambda *args: _helpers.build_sample_index(*args, 2)):
        with pytest.raises(ValueError, match="a sequence has length -2"):
            count(lengths, 0, 3)


def reader(index, last=3, order=None, sequence_length=3):
    lengths, pointers = np.array([4, 3, 3], np.int32), np.array([0, 8, 14], np.int64)
    tokens = np.arange(10, dtype=np.uint16)
    return _helpers.SampleReader(tokens, lengths, pointers, np.array(index), last, sequence_length, order)


def test_a_reader_follows_the_order_of_sequences():
    order = np.array([2, 0, 1, 0], np.int32)
    samples = reader([[0, 1], [1, 3], [2, 0]], last=4, order=order)
    assert samples.read(np.array([2, 0, 1])).tolist() == [[4, 5, 6, 0], [8, 9, 0, 1], [3, 4, 5, 6]]


@pytest.mark.parametrize(
    ("index", "order", "sample", "words"),
    [
        ([[0, 0]], None, 1, "sample 1 of 1"),
        ([[0, 0]], None, -1, "sample -1 of 1"),
        ([[-1, 0]], None, 0, "starts 0 tokens into place -1"),
        ([[0, -1]], None, 0, "starts -1 tokens into place 0"),
        ([[3, 0]], None, 0, "lie past the last sequence, 2"),
        ([[2, 1]], None, 0, "2 tokens lie past the last sequence, 2"),
        ([[0, 5]], None, 0, "offset 5 in sequence 0 of 4"),
        ([[0, 0]], [3, 0, 0], 0, "sequence 3 of 3"),
        ([[0, 1]], [1, -1, 0], 0, "sequence -1 of 3"),
    ],
)
def test_a_reader_refuses_what_lies_outside(index, order, sample, words):
    order = None if order is None else np.array(order, np.int32)
    with pytest.raises(IndexError, match=words):
        reader(index, order=order).read(np.array([sample]))


def test_token_range_finds_both_ends():
    assert _helpers.token_range(np.array([5, -3, 70000], np.int32)) == (-3, 70000)
    with pytest.raises(ValueError, match="no tokens"):
        _helpers.token_range(np.empty(0, np.uint16))
    with pytest.raises(ValueError, match="not token ids"):
        _helpers.token_range(np.ones(2, np.float32))


def places(weights, begin, end):
    datasets, samples = _helpers.blend(weights, begin, end)
    return list(zip(datasets.tolist(), samples.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_blend_equals_the_rule_in_python_wherever_it_is_entered(seed):
    rng = np.random.default_rng(seed)
    weights = rng.random(rng.integers(1, 30)) ** 3 + 1e-3
    weights[rng.integers(0, len(weights))] = weights[0]  # ties
    weights = (weights / weights.sum()).tolist()
    expected = blended(weights, 400)
    for begin in (0, 1, *rng.integers(0, 400, 8).tolist()):
        assert places(weights, begin, 400) == expected[begin:]
        given = [sum(dataset == d for dataset, _ in expected[:begin]) for d in range(len(weights))]
        assert _helpers.blend_counts(weights, begin).tolist() == given


def test_blend_far_in_equals_the_end_of_a_walk():
    weights = np.random.default_rng(0).random(50)
    weights = (weights / weights.sum()).tolist()
    walked = _helpers.blend(weights, 0, 3_000_000)
    entered = _helpers.blend(weights, 2_999_900, 3_000_000)
    for walk, entry in zip(walked, entered, strict=True):
        assert np.array_equal(walk[-100:], entry)


def test_blend_holds_every_share_to_within_its_bound_after_a_trillion_samples():
    weights = np.random.default_rng(1).random(20) ** 4
    weights = (weights / weights.sum()).tolist()
    for position in (10**6, 10**12 + 7):
        counts = _helpers.blend_counts(weights, position)
        assert counts.sum() == position
        for count, weight in zip(counts.tolist(), weights, strict=True):
            assert abs(count - weight * position) <= 0.5 + weight * len(weights) / 2 + 1e-3


def test_blend_takes_nothing_of_a_weight_of_zero():
    assert places([0.5, 0.0, 0.5], 0, 4) == [(0, 0), (2, 0), (0, 1), (2, 1)]


@pytest.mark.parametrize("weights", [[], [0.5, 0.4], [1.5, -0.5], [float("nan"), 1.0], [0.0]])
def test_blend_refuses_weights_that_are_no_shares(weights):
    with pytest.raises(ValueError, match=r"weights? of a blend"):
        _helpers.blend(weights, 0, 1)
