// The orders of megatron-core 0.16.1, number for number: its shuffles, its sample index, its blend.

#include "arrays.h"

#include <pybind11/stl.h>

#include <array>
#include <numeric>
#include <random>

namespace helpers {
namespace {

// numpy's RandomState as far as its shuffle goes: the Mersenne twister, and for each i from the last element down to
// the second one a swap with element j <= i, drawn by masking and rejection.
class RandomState {
public:
    explicit RandomState(std::uint32_t seed) : generator_(seed) {}

    template <typename T>
    void shuffle(T* values, std::int64_t count) {
        // Where swaps go does not depend on what is swapped: drawing some ahead lets memory fetch them meanwhile.
        std::array<std::int64_t, 64> targets;
        for (std::int64_t i = count - 1; i > 0;) {
            const std::int64_t drawn = std::min<std::int64_t>(i, targets.size());
            for (std::int64_t k = 0; k < drawn; ++k) {
                targets[static_cast<std::size_t>(k)] = draw(static_cast<std::uint32_t>(i - k));
                __builtin_prefetch(values + targets[static_cast<std::size_t>(k)], 1);
            }
            for (std::int64_t k = 0; k < drawn; ++k, --i)
                std::swap(values[i], values[targets[static_cast<std::size_t>(k)]]);
        }
    }

private:
    std::uint32_t draw(std::uint32_t highest) {
        std::uint32_t mask = highest;
        for (int shift = 1; shift < 32; shift *= 2) mask |= mask >> shift;
        std::uint32_t value;
        do value = static_cast<std::uint32_t>(generator_()) & mask;
        while (value > highest);
        return value;
    }

    std::mt19937 generator_;
};

template <typename T>
py::array shuffled_as(RandomState& random, std::int64_t first, std::int64_t last, std::int64_t copies) {
    py::array_t<T> result((last - first) * copies);
    T* out = result.mutable_data();
    {
        py::gil_scoped_release unlocked;
        for (std::int64_t copy = 0; copy < copies; ++copy)
            std::iota(out + copy * (last - first), out + (copy + 1) * (last - first), static_cast<T>(first));
        random.shuffle(out, (last - first) * copies);
    }
    return result;
}

py::array shuffled(RandomState& random, const py::dtype& dtype, std::int64_t first, std::int64_t last,
                   std::int64_t copies) {
    if (first < 0 || last < first || copies < 0)
        throw std::invalid_argument(to_string(copies) + " copies of [" + to_string(first) + ", " + to_string(last) + ")");
    constexpr std::int64_t most = (std::int64_t{1} << 32) - 2;  // from there on numpy draws 64 bits for an index
    if (last > first && copies > most / (last - first))
        throw std::invalid_argument(to_string(copies) + " times " + to_string(last - first) +
                                    " elements are more than 2^32 - 2");
    if (dtype.equal(py::dtype::of<std::int32_t>())) return shuffled_as<std::int32_t>(random, first, last, copies);
    if (dtype.equal(py::dtype::of<std::uint32_t>())) return shuffled_as<std::uint32_t>(random, first, last, copies);
    throw std::invalid_argument("a shuffle of " + std::string(py::str(dtype)) + "; int32 or uint32");
}

// Writes samples + 1 rows (place in `order`, tokens into its sequence), each sequence_length tokens after the one before.
void walk_shuffled(const Column<std::int32_t>& lengths, const Column<std::int32_t>& order,
                   std::int64_t sequence_length, std::int64_t samples, std::int64_t* out) {
    constexpr std::int64_t ahead = 32;  // the order jumps about in the lengths, so these are fetched early
    std::int64_t place = -1, length = 0, offset = 0;
    auto next = [&] {
        if (++place >= order.size())
            throw std::out_of_range("there are too few tokens for " + to_string(samples) + " samples");
        if (place + ahead < order.size()) lengths.prefetch(order[place + ahead]);
        const std::int64_t sequence = order[place];
        if (sequence < 0 || sequence >= lengths.size())
            throw std::out_of_range("sequence " + to_string(sequence) + " of " + to_string(lengths.size()));
        length = lengths[sequence];
    };
    out[0] = out[1] = 0;  // also where the first sequence is empty
    for (std::int64_t i = 0; i <= samples; ++i, offset += sequence_length) {
        while (offset >= length) {
            offset -= length;
            next();
        }
        if (i == 0) continue;
        out[2 * i] = place;
        out[2 * i + 1] = offset;
    }
}

py::array_t<std::int64_t> build_megatron_sample_index(const py::array& lengths_array, const py::array& order_array,
                                                      std::int64_t sequence_length, std::int64_t samples) {
    const Column<std::int32_t> lengths(lengths_array, "lengths"), order(order_array, "order");
    if (sequence_length < 1 || samples < 0)
        throw std::invalid_argument(to_string(samples) + " samples of " + to_string(sequence_length) + " tokens");
    py::array_t<std::int64_t> result({samples + 1, std::int64_t{2}});
    std::int64_t* out = result.mutable_data();
    {
        py::gil_scoped_release unlocked;
        walk_shuffled(lengths, order, sequence_length, samples, out);
    }
    return result;
}

// Sample s of a blend comes from the data set whose share lags most: the largest weight * max(s, 1) - count, the first
// one on a tie.
py::tuple blend_like_megatron(const std::vector<double>& weights, std::int64_t begin, std::int64_t end,
                              std::vector<std::int64_t> counts) {
    if (weights.empty() || weights.size() != counts.size())
        throw std::invalid_argument(to_string(weights.size()) + " weights and " + to_string(counts.size()) + " counts");
    BlendColumns columns(begin, end);
    std::int64_t sample = begin;
    columns.fill([&] {
        const double due = static_cast<double>(std::max<std::int64_t>(sample++, 1));
        std::size_t chosen = 0;
        double most = weights[0] * due - static_cast<double>(counts[0]);
        for (std::size_t d = 1; d < weights.size(); ++d) {
            const double lag = weights[d] * due - static_cast<double>(counts[d]);
            if (lag > most) most = lag, chosen = d;
        }
        return std::pair(static_cast<std::int32_t>(chosen), counts[chosen]++);
    });
    return py::make_tuple(columns.datasets, columns.samples, counts);
}

}  // namespace

void bind_megatron(py::module_& module) {
    py::class_<RandomState>(module, "RandomState", "numpy.random.RandomState(seed), for shuffles alone.")
        .def(py::init<std::uint32_t>(), py::arg("seed"))
        .def("shuffled", &shuffled, py::arg("dtype"), py::arg("first"), py::arg("last"), py::arg("copies") = 1,
             "What RandomState.shuffle makes of `copies` of arange(first, last), one behind the other.\n"
             "dtype is int32 or uint32. Raises ValueError for more than 2^32 - 2 elements.");
    module.def("build_megatron_sample_index", &build_megatron_sample_index, py::arg("lengths"), py::arg("order"),
               py::arg("sequence_length"), py::arg("samples"),
               "int64 [samples + 1, 2]: at which place of `order`, int32, and how many tokens into that place's sequence\n"
               "each sample starts; the last row tells where the one after would. Raises IndexError for too few tokens.");
    module.def("blend_like_megatron", &blend_like_megatron, py::arg("weights"), py::arg("begin"), py::arg("end"),
               py::arg("counts"),
               "(int32 [n] data set, int64 [n] sample of it, counts after) for samples begin..end of a blend.\n"
               "`counts` holds how many samples each data set gave before `begin`; weights sum to 1.");
}

}  // namespace helpers
