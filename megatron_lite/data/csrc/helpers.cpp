// Index arithmetic of the data room. Everything is 64-bit, bounds are checked, and the GIL is released in loops.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace py = pybind11;

namespace {

// The finalizer of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014, figure 17).
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
        throw std::invalid_argument("positions [" + std::to_string(begin) + ", " + std::to_string(end) +
                                    ") do not lie in [0, " + std::to_string(size) + ")");
    py::array_t<std::int64_t> result(end - begin);
    std::int64_t* out = result.mutable_data();
    py::gil_scoped_release unlocked;
    const Permutation permutation(static_cast<std::uint64_t>(size), seed, stream, epoch);
    for (std::int64_t i = begin; i < end; ++i) out[i - begin] = static_cast<std::int64_t>(permutation(i));
    return result;
}

}  // namespace

PYBIND11_MODULE(_helpers, module) {
    module.doc() = "Index arithmetic of the data room, in C++.";
    module.def("permute", &permute, py::arg("begin"), py::arg("end"), py::arg("size"), py::arg("seed"),
               py::arg("stream"), py::arg("epoch"),
               "int64 [end - begin]: where positions begin..end of an epoch lie in the data set of `size` samples.\n"
               "A permutation of [0, size) for every (seed, stream, epoch).");
}
