// Index arithmetic of the data room. Everything is 64-bit, bounds are checked, and the GIL is released in loops.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace py = pybind11;

namespace {

using std::to_string;

// A one-dimensional numpy array read element by element. The arrays of an .idx file start at byte 34, unaligned,
// hence the memcpy (which compiles to one load).
template <typename T>
class Column {
public:
    Column(const py::array& array, const char* name) {
        const bool contiguous = array.ndim() == 1 && (array.size() < 2 || array.strides(0) == sizeof(T));
        if (!array.dtype().equal(py::dtype::of<T>()) || !contiguous)
            throw std::invalid_argument(std::string(name) + " must be a contiguous one-dimensional array of " +
                                        std::string(py::str(py::dtype::of<T>())));
        data_ = static_cast<const char*>(array.data());
        size_ = array.size();
    }

    std::int64_t size() const { return size_; }

    T operator[](std::int64_t i) const {
        T value;
        std::memcpy(&value, data_ + i * static_cast<std::int64_t>(sizeof(T)), sizeof(T));
        return value;
    }

    void copy(std::int64_t begin, std::int64_t count, std::int64_t* out) const {
        for (std::int64_t i = 0; i < count; ++i) out[i] = static_cast<std::int64_t>((*this)[begin + i]);
    }

private:
    const char* data_;
    std::int64_t size_;
};

void check_range(std::int64_t first, std::int64_t last, std::int64_t size) {
    if (first < 0 || last < first || last > size)
        throw std::out_of_range("sequences [" + to_string(first) + ", " + to_string(last) + ") of " + to_string(size));
}

// ---- the index of a data set -----------------------------------------------------------------------------------

void check_index(const py::array& lengths_array, const py::array& pointers_array, const py::array& documents_array,
                 std::int64_t token_bytes, std::int64_t bin_bytes) {
    const Column<std::int32_t> lengths(lengths_array, "lengths");
    const Column<std::int64_t> pointers(pointers_array, "pointers"), documents(documents_array, "documents");
    py::gil_scoped_release unlocked;
    std::int64_t end = 0;
    for (std::int64_t i = 0; i < lengths.size(); ++i) {
        const std::int64_t length = lengths[i], pointer = pointers[i];
        if (length < 0) throw std::invalid_argument("sequence " + to_string(i) + " has length " + to_string(length));
        // A length below 2^31 times 8 bytes does not overflow, and token_bytes is a power of two: no division.
        const bool aligned = (pointer & (token_bytes - 1)) == 0;
        if (pointer < 0 || !aligned || pointer > bin_bytes || length * token_bytes > bin_bytes - pointer)
            throw std::invalid_argument("sequence " + to_string(i) + " of " + to_string(length) + " tokens at byte " +
                                        to_string(pointer) + " does not lie in the " + to_string(bin_bytes) +
                                        " bytes of the .bin file");
        end = std::max(end, pointer + length * token_bytes);
    }
    if (end != bin_bytes)
        throw std::invalid_argument("the index describes " + to_string(end) + " bytes, the .bin file has " +
                                    to_string(bin_bytes));
    for (std::int64_t i = 0; i < documents.size(); ++i) {
        const std::int64_t lowest = i == 0 ? 0 : documents[i - 1];
        const std::int64_t highest = i == 0 ? 0 : lengths.size();
        if (documents[i] < lowest || documents[i] > highest)
            throw std::invalid_argument("document " + to_string(i) + " begins at sequence " + to_string(documents[i]) +
                                        ", not in [" + to_string(lowest) + ", " + to_string(highest) + "]");
    }
}

py::array_t<std::int64_t> build_sample_index(const py::array& lengths_array, std::int64_t first, std::int64_t last,
                                             std::int64_t sequence_length) {
    const Column<std::int32_t> lengths(lengths_array, "lengths");
    check_range(first, last, lengths.size());
    if (sequence_length < 1) throw std::invalid_argument("sequence_length is " + to_string(sequence_length));
    std::int64_t tokens = 0;
    for (std::int64_t i = first; i < last; ++i) tokens += lengths[i];
    const std::int64_t samples = tokens > 0 ? (tokens - 1) / sequence_length : 0;
    py::array_t<std::int64_t> result({samples, std::int64_t{2}});
    std::int64_t* out = result.mutable_data();
    {
        py::gil_scoped_release unlocked;
        std::int64_t sequence = first, offset = 0;  // invariant: sample i starts `offset` tokens into `sequence`
        for (std::int64_t i = 0; i < samples; ++i, offset += sequence_length) {
            while (offset >= lengths[sequence]) offset -= lengths[sequence++];
            out[2 * i] = sequence;
            out[2 * i + 1] = offset;
        }
    }
    return result;
}

// ---- tokens ----------------------------------------------------------------------------------------------------

// Calls `function` with the tokens as a column of their own type.
template <typename Function>
auto with_tokens(const py::array& tokens, Function function) {
    const char* name = "tokens";
    const py::dtype dtype = tokens.dtype();
    if (dtype.equal(py::dtype::of<std::uint16_t>())) return function(Column<std::uint16_t>(tokens, name));
    if (dtype.equal(py::dtype::of<std::int32_t>())) return function(Column<std::int32_t>(tokens, name));
    if (dtype.equal(py::dtype::of<std::uint8_t>())) return function(Column<std::uint8_t>(tokens, name));
    if (dtype.equal(py::dtype::of<std::int8_t>())) return function(Column<std::int8_t>(tokens, name));
    if (dtype.equal(py::dtype::of<std::int16_t>())) return function(Column<std::int16_t>(tokens, name));
    if (dtype.equal(py::dtype::of<std::int64_t>())) return function(Column<std::int64_t>(tokens, name));
    throw std::invalid_argument("tokens of type " + std::string(py::str(dtype)) + " are not token ids");
}

// Copies `count` tokens starting `offset` tokens into sequence `sequence`, and on through the sequences before `last`.
template <typename Token>
void gather(const Column<Token>& tokens, const Column<std::int32_t>& lengths, const Column<std::int64_t>& pointers,
            std::int64_t sequence, std::int64_t last, std::int64_t offset, std::int64_t count, std::int64_t* out) {
    for (; count > 0; ++sequence, offset = 0) {
        if (sequence >= last)
            throw std::out_of_range(to_string(count) + " tokens lie past the last sequence, " + to_string(last - 1));
        const std::int64_t length = lengths[sequence];
        if (offset > length)
            throw std::out_of_range("offset " + to_string(offset) + " in sequence " + to_string(sequence) + " of " +
                                    to_string(length) + " tokens");
        const std::int64_t begin = pointers[sequence] / static_cast<std::int64_t>(sizeof(Token)) + offset;
        const std::int64_t taken = std::min(count, length - offset);
        if (begin < 0 || begin > tokens.size() - taken)
            throw std::out_of_range("sequence " + to_string(sequence) + " ends past the .bin file");
        tokens.copy(begin, taken, out);
        out += taken;
        count -= taken;
    }
}

py::array_t<std::int64_t> gather_tokens(const py::array& token_array, const py::array& lengths_array,
                                        const py::array& pointers_array, std::int64_t sequence, std::int64_t last,
                                        std::int64_t offset, std::int64_t count) {
    const Column<std::int32_t> lengths(lengths_array, "lengths");
    const Column<std::int64_t> pointers(pointers_array, "pointers");
    check_range(sequence, last, std::min(lengths.size(), pointers.size()));
    if (offset < 0 || count < 0) throw std::out_of_range("offset and count must not be negative");
    py::array_t<std::int64_t> result(count);
    std::int64_t* out = result.mutable_data();
    with_tokens(token_array, [&](const auto& tokens) {
        py::gil_scoped_release unlocked;
        gather(tokens, lengths, pointers, sequence, last, offset, count, out);
    });
    return result;
}

py::tuple token_range(const py::array& token_array) {
    if (token_array.size() == 0) throw std::invalid_argument("there are no tokens");
    std::int64_t lowest = 0, highest = 0;
    with_tokens(token_array, [&](const auto& tokens) {
        py::gil_scoped_release unlocked;
        auto low = tokens[0], high = tokens[0];  // of the tokens' own type: many fit into one vector instruction
        for (std::int64_t i = 1; i < tokens.size(); ++i) {
            low = std::min(low, tokens[i]);
            high = std::max(high, tokens[i]);
        }
        lowest = static_cast<std::int64_t>(low);
        highest = static_cast<std::int64_t>(high);
    });
    return py::make_tuple(lowest, highest);
}

// ---- order -----------------------------------------------------------------------------------------------------

// The finalizer of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014,
// figure 17).
std::uint64_t mix(std::uint64_t z) {
    z += 0x9e3779b97f4a7c15ULL;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

// A keyed permutation of [0, size): a balanced Feistel network over the next power of four, walked along its cycle
// until it falls into the range (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002, sections 4 and 5).
// It needs no memory and no other position, so an epoch of any length is extended or entered anywhere for free.
class Permutation {
public:
    Permutation(std::uint64_t size, std::uint64_t seed, std::uint64_t stream, std::uint64_t epoch) : size_(size) {
        while (half_ < 32 && (1ULL << (2 * half_)) < size) ++half_;
        mask_ = (1ULL << half_) - 1;
        std::uint64_t key = mix(mix(mix(seed) ^ stream) ^ epoch);
        for (std::uint64_t& round_key : round_keys_) round_key = key = mix(key);
    }

    std::uint64_t operator()(std::uint64_t position) const {
        do position = network(position);
        while (position >= size_);
        return position;
    }

private:
    std::uint64_t network(std::uint64_t x) const {
        std::uint64_t left = x >> half_, right = x & mask_;
        for (std::uint64_t round_key : round_keys_) {
            const std::uint64_t next = left ^ (mix(right ^ round_key) & mask_);
            left = right;
            right = next;
        }
        return (left << half_) | right;
    }

    std::uint64_t size_, mask_ = 0;
    int half_ = 4;  // bits of one half; at least 4, since a network over fewer bits reaches few permutations
    std::uint64_t round_keys_[8];
};

py::array_t<std::int64_t> permute(std::int64_t begin, std::int64_t end, std::int64_t size, std::uint64_t seed,
                                  std::uint64_t stream, std::uint64_t epoch) {
    if (begin < 0 || end < begin || end > size)
        throw std::out_of_range("positions [" + to_string(begin) + ", " + to_string(end) + ") of " + to_string(size));
    py::array_t<std::int64_t> result(end - begin);
    std::int64_t* out = result.mutable_data();
    {
        py::gil_scoped_release unlocked;
        const Permutation permutation(static_cast<std::uint64_t>(size), seed, stream, epoch);
        for (std::int64_t i = begin; i < end; ++i) out[i - begin] = static_cast<std::int64_t>(permutation(i));
    }
    return result;
}

// Sample s of a blend comes from the data set whose share lags most: the largest weight * max(s, 1) - count, the first
// one on a tie. The choice depends on nothing that comes later, so a longer blend begins with the shorter one.
py::tuple blend(const std::vector<double>& weights, std::int64_t begin, std::int64_t end,
                std::vector<std::int64_t> counts) {
    if (weights.empty() || weights.size() != counts.size())
        throw std::invalid_argument(to_string(weights.size()) + " weights and " + to_string(counts.size()) + " counts");
    if (begin < 0 || end < begin) throw std::out_of_range("samples [" + to_string(begin) + ", " + to_string(end) + ")");
    py::array_t<std::int32_t> datasets(end - begin);
    py::array_t<std::int64_t> samples(end - begin);
    std::int32_t* dataset_out = datasets.mutable_data();
    std::int64_t* sample_out = samples.mutable_data();
    {
        py::gil_scoped_release unlocked;
        for (std::int64_t i = begin; i < end; ++i) {
            const double due = static_cast<double>(std::max<std::int64_t>(i, 1));
            std::size_t chosen = 0;
            double most = weights[0] * due - static_cast<double>(counts[0]);
            for (std::size_t d = 1; d < weights.size(); ++d) {
                const double lag = weights[d] * due - static_cast<double>(counts[d]);
                if (lag > most) most = lag, chosen = d;
            }
            *dataset_out++ = static_cast<std::int32_t>(chosen);
            *sample_out++ = counts[chosen]++;
        }
    }
    return py::make_tuple(datasets, samples, counts);
}

}  // namespace

PYBIND11_MODULE(_helpers, module) {
    module.doc() = "Index arithmetic of the data room, in C++.";
    module.def("check_index", &check_index, py::arg("lengths"), py::arg("pointers"), py::arg("documents"),
               py::arg("token_bytes"), py::arg("bin_bytes"),
               "Raises ValueError, naming the first fault, unless the index describes a .bin of just `bin_bytes`.\n"
               "lengths int32 [S] in tokens, pointers int64 [S] in bytes, documents int64 [D + 1] in sequences.");
    module.def("build_sample_index", &build_sample_index, py::arg("lengths"), py::arg("first"), py::arg("last"),
               py::arg("sequence_length"),
               "int64 [N, 2]: the sequence in which each sample starts, and how many tokens into it.\n"
               "Sample i is tokens i * sequence_length and the sequence_length after it of sequences [first, last) in\n"
               "file order; the up to sequence_length - 1 tokens after the last whole sample are dropped.");
    module.def("gather_tokens", &gather_tokens, py::arg("tokens"), py::arg("lengths"), py::arg("pointers"),
               py::arg("sequence"), py::arg("last"), py::arg("offset"), py::arg("count"),
               "int64 [count]: tokens from `offset` in `sequence` on, through the sequences before `last`.\n"
               "Raises IndexError where there are fewer.");
    module.def("token_range", &token_range, py::arg("tokens"),
               "(lowest, highest) token id. Raises ValueError on none.");
    module.def("permute", &permute, py::arg("begin"), py::arg("end"), py::arg("size"), py::arg("seed"),
               py::arg("stream"), py::arg("epoch"),
               "int64 [end - begin]: which of `size` samples stand at positions begin..end of an epoch.\n"
               "A permutation of [0, size) for every (seed, stream, epoch).");
    module.def("blend", &blend, py::arg("weights"), py::arg("begin"), py::arg("end"), py::arg("counts"),
               "(int32 [n] data set, int64 [n] sample of it, counts after) for samples begin..end of a blend.\n"
               "`counts` holds how many samples each data set gave before `begin`; weights sum to 1.");
}
