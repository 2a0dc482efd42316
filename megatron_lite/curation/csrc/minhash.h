// MinHash signatures (Broder 1997) of a text's word 5-grams, folded to one hash a band for locality-sensitive hashing.
//
// A shingle is 5 consecutive tokens of the lower-cased text; a text of 1 to 4 tokens has one shingle, all of them; a
// text without tokens has none. Permutation i maps a shingle's 32-bit hash x to a_i x + b_i mod 2^32, a_i odd.
// The minima over all shingles are exact integers, so every instruction set gives the same ones.

#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "hash.h"
#include "lowercase.h"
#include "words.h"

namespace curation {

inline constexpr std::size_t shingle_tokens = 5, bands = 14, rows = 8, permutations = bands * rows;

using Bands = std::array<std::uint64_t, bands>;

// Calls use(64-bit hash) for every shingle in order, repeated ones too. `lowered` is memory to work in.
template <typename Use>
void for_each_shingle(std::string_view text, std::string& lowered, Use use) {
    lowercase(text, lowered);
    // The hashes of the last 5 tokens, each times its own odd number: order counts.
    std::array<std::uint64_t, shingle_tokens> recent{};
    std::size_t tokens = 0;
    Splitter splitter(lowered);
    const auto combined = [&] {
        std::uint64_t sum = 0;
        for (std::size_t i = 0; i < shingle_tokens; ++i) sum = sum * key_0 + recent[i];
        return mix(sum);
    };
    for (Token token; splitter.next(token); ++tokens) {
        std::copy(recent.begin() + 1, recent.end(), recent.begin());
        recent.back() = hash_bytes(std::string_view(lowered).substr(token.begin, token.end - token.begin), 0);
        if (tokens + 1 >= shingle_tokens) use(combined());
    }
    if (tokens > 0 && tokens < shingle_tokens) use(combined());
}

// ---- minima, written once and compiled for each instruction set --------------------------------------------------

struct Permutations {
    alignas(64) std::array<std::uint32_t, permutations> a, b;

    explicit Permutations(std::uint64_t seed) {
        for (std::size_t i = 0; i < permutations; ++i) {
            const std::uint64_t random = mix(seed + (i + 1) * key_1);
            a[i] = static_cast<std::uint32_t>(random) | 1;
            b[i] = static_cast<std::uint32_t>(random >> 32);
        }
    }
};

using Minima = std::array<std::uint32_t, permutations>;

// `lanes` minima at a time stay in registers while all shingles pass. Plain loops: each caller's instruction set decides
// what the compiler makes of them.
template <std::size_t lanes>
__attribute__((always_inline)) inline void lower_minima(const Permutations& permutation, const std::uint32_t* shingles,
                                                        std::size_t count, Minima& minima) {
    static_assert(permutations % lanes == 0);
    for (std::size_t i = 0; i < permutations; i += lanes) {
        std::uint32_t a[lanes], b[lanes], least[lanes];
        for (std::size_t j = 0; j < lanes; ++j) {
            a[j] = permutation.a[i + j];
            b[j] = permutation.b[i + j];
            least[j] = minima[i + j];
        }
        for (std::size_t k = 0; k < count; ++k)
            for (std::size_t j = 0; j < lanes; ++j) {
                const std::uint32_t hash = a[j] * shingles[k] + b[j];
                least[j] = hash < least[j] ? hash : least[j];
            }
        for (std::size_t j = 0; j < lanes; ++j) minima[i + j] = least[j];
    }
}

using LowerMinima = void (*)(const Permutations&, const std::uint32_t*, std::size_t, Minima&);

inline void lower_minima_portable(const Permutations& p, const std::uint32_t* shingles, std::size_t count, Minima& m) {
    lower_minima<8>(p, shingles, count, m);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) inline void lower_minima_avx2(const Permutations& p, const std::uint32_t* shingles,
                                                              std::size_t count, Minima& m) {
    lower_minima<8>(p, shingles, count, m);
}

__attribute__((target("avx512f"))) inline void lower_minima_avx512(const Permutations& p, const std::uint32_t* shingles,
                                                                   std::size_t count, Minima& m) {
    lower_minima<16>(p, shingles, count, m);
}
#endif

struct InstructionSet {
    const char* name;
    LowerMinima lower_minima;
};

// Those that this processor has, the widest last. "portable" is what the compiler makes without flags: SSE2, or NEON.
inline std::vector<InstructionSet> instruction_sets() {
    std::vector<InstructionSet> result{{"portable", lower_minima_portable}};
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) result.push_back({"avx2", lower_minima_avx2});
    if (__builtin_cpu_supports("avx512f")) result.push_back({"avx512", lower_minima_avx512});
#endif
    return result;
}

// ---- signatures --------------------------------------------------------------------------------------------------

class Signer {
public:
    Signer(const Permutations& permutation, LowerMinima lower) : permutation_(permutation), lower_(lower) {}

    // The text's band hashes into `out`; false, and nothing written, for a text without tokens.
    bool sign(std::string_view text, std::uint64_t* out) {
        Minima minima;
        minima.fill(~std::uint32_t{0});
        std::size_t count = 0, total = 0;
        for_each_shingle(text, lowered_, [&](std::uint64_t shingle) {
            block_[count++] = static_cast<std::uint32_t>(shingle >> 32);
            ++total;
            if (count == block_.size()) {
                lower_(permutation_, block_.data(), count, minima);
                count = 0;
            }
        });
        lower_(permutation_, block_.data(), count, minima);
        if (total == 0) return false;
        for (std::size_t band = 0; band < bands; ++band) {
            std::uint64_t hash = mix(band + key_2);  // bands are told apart: equal minima in two of them are no match
            for (std::size_t i = 0; i < rows; i += 2)
                hash = fold(hash ^ minima[band * rows + i],
                            (std::uint64_t{minima[band * rows + i + 1]} << 32 | 1) ^ key_3);
            out[band] = mix(hash);
        }
        return true;
    }

private:
    const Permutations& permutation_;
    LowerMinima lower_;
    std::string lowered_;
    std::array<std::uint32_t, 1024> block_;  // shingles at a time: they stay in the first cache
};

}  // namespace curation
