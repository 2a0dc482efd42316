// Which sample stands where: permutations of an epoch and blends, each a pure function that is entered anywhere.

#include "arrays.h"

#include <pybind11/stl.h>

#include <cmath>
#include <limits>
#include <tuple>
#include <utility>

namespace helpers {
namespace {

// ---- one data set ----

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

// ---- several data sets ----

// In one unit of time the blend gives one sample, a data set `weight` of one, and its sample k is due at
// (k + 1/2) / weight.
double due(std::int64_t sample, double weight) { return (static_cast<double>(sample) + 0.5) / weight; }

// How many samples of a data set are due before `time`.
std::int64_t due_before(double time, double weight) {
    std::int64_t count = std::max<std::int64_t>(0, static_cast<std::int64_t>(std::ceil(time * weight - 0.5)));
    while (count > 0 && due(count - 1, weight) >= time) --count;  // what rounding made of the closed form
    while (due(count, weight) < time) ++count;
    return count;
}

// The next sample of every data set and when it is due, in a tournament of losers (Knuth, The Art of Computer
// Programming 3, section 5.4.1): what is due first has won, and each match keeps the one that lost it. Once the winner's
// next sample has taken its place, only the matches on its way up are played again, without a branch on who wins.
class Turns {
public:
    // As they stand after `position` samples of the blend. By any time t, each data set has given within 1/2 of
    // weight * t samples and all n together within n / 2 of t: so at time position - n / 2 - 1 no more than `position`
    // have been given, and about n are left to walk.
    Turns(const std::vector<double>& weights, std::int64_t position) : weights_(weights), samples_(weights.size()) {
        while (leaves_ < weights.size()) leaves_ *= 2;
        times_.assign(leaves_, bits(std::numeric_limits<double>::infinity()));  // never: weight 0, and empty places
        const double time = static_cast<double>(position) - 0.5 * static_cast<double>(weights.size()) - 1;
        std::int64_t given = 0;
        for (std::size_t d = 0; d < weights.size(); ++d) {
            if (!(weights[d] > 0)) continue;
            given += samples_[d] = due_before(time, weights[d]);
            times_[d] = bits(due(samples_[d], weights[d]));
        }
        play_all();
        while (given++ < position) next();
    }

    // (data set, its sample) whose turn it is.
    std::pair<std::int32_t, std::int64_t> next() {
        const auto d = static_cast<std::size_t>(winner_);
        const std::pair<std::int32_t, std::int64_t> turn{winner_, samples_[d]++};
        std::uint64_t time = times_[d] = bits(due(samples_[d], weights_[d]));
        std::int32_t best = winner_;
        for (std::size_t match = (leaves_ + d) / 2; match > 0; match /= 2) {
            const std::int32_t other = losers_[match];
            const std::uint64_t other_time = time_of(other);
            const std::int64_t swap = -static_cast<std::int64_t>(earlier(other_time, other, time, best));
            const std::int32_t change = static_cast<std::int32_t>(swap) & (other ^ best);
            time ^= static_cast<std::uint64_t>(swap) & (other_time ^ time);
            losers_[match] = other ^ change;
            best ^= change;
        }
        winner_ = best;
        return turn;
    }

    const std::vector<std::int64_t>& samples() const { return samples_; }

private:
    // In their order as numbers are, since no time is negative; to compare and choose among them is one cycle each.
    static std::uint64_t bits(double time) {
        std::uint64_t result;
        std::memcpy(&result, &time, sizeof result);
        return result;
    }

    static bool earlier(std::uint64_t time, std::int32_t dataset, std::uint64_t than, std::int32_t other) {
        return (time < than) | ((time == than) & (dataset < other));
    }

    std::uint64_t time_of(std::int32_t dataset) const { return times_[static_cast<std::size_t>(dataset)]; }

    void play_all() {
        losers_.resize(leaves_);
        std::vector<std::int32_t> winners(2 * leaves_);  // of each match; the places themselves behind
        for (std::size_t d = 0; d < leaves_; ++d) winners[leaves_ + d] = static_cast<std::int32_t>(d);
        for (std::size_t match = leaves_ - 1; match > 0; --match) {
            const std::int32_t left = winners[2 * match], right = winners[2 * match + 1];
            const bool right_wins = earlier(time_of(right), right, time_of(left), left);
            winners[match] = right_wins ? right : left;
            losers_[match] = right_wins ? left : right;
        }
        winner_ = winners[1];
    }

    const std::vector<double>& weights_;
    std::vector<std::int64_t> samples_;  // of each data set, the next
    std::vector<std::uint64_t> times_;   // the bits of when that is due
    std::size_t leaves_ = 1;
    std::vector<std::int32_t> losers_;  // of match i; the winners of 2 i and 2 i + 1 played it, match 1 is the last
    std::int32_t winner_ = 0;
};

void check_weights(const std::vector<double>& weights) {
    double sum = 0;
    for (double weight : weights) {
        if (!(weight >= 0)) throw std::invalid_argument("a weight of a blend is " + to_string(weight));
        sum += weight;
    }
    if (!(std::abs(sum - 1) < 1e-6)) throw std::invalid_argument("the weights of a blend sum to " + to_string(sum));
}

py::tuple blend(const std::vector<double>& weights, std::int64_t begin, std::int64_t end) {
    check_weights(weights);
    BlendColumns columns(begin, end);
    Turns turns(weights, begin);
    columns.fill([&] { return turns.next(); });
    return py::make_tuple(columns.datasets, columns.samples);
}

py::array_t<std::int64_t> blend_counts(const std::vector<double>& weights, std::int64_t position) {
    check_weights(weights);
    if (position < 0) throw std::out_of_range("position " + to_string(position));
    py::array_t<std::int64_t> counts(static_cast<std::int64_t>(weights.size()));
    const Turns turns(weights, position);
    std::copy(turns.samples().begin(), turns.samples().end(), counts.mutable_data());
    return counts;
}

}  // namespace

void bind_order(py::module_& module) {
    module.def("permute", &permute, py::arg("begin"), py::arg("end"), py::arg("size"), py::arg("seed"),
               py::arg("stream"), py::arg("epoch"),
               "int64 [end - begin]: which of `size` samples stand at positions begin..end of an epoch.\n"
               "A permutation of [0, size) for every (seed, stream, epoch).");
    module.def("blend", &blend, py::arg("weights"), py::arg("begin"), py::arg("end"),
               "(int32 [n] data set, int64 [n] sample of it) for samples begin..end of a blend: sample k of a data set\n"
               "is due at (k + 1/2) / weight, and samples come as they are due, the lower data set first on a tie.\n"
               "Weights sum to 1; a data set with weight 0 gives none.");
    module.def("blend_counts", &blend_counts, py::arg("weights"), py::arg("position"),
               "int64 [data sets]: how many samples each gave among the first `position` of a blend.");
}

}  // namespace helpers
