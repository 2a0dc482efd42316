// Hashes of bytes and numbers. They are written to disk and joined years later: never change one.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace curation {

// Odd constants without a pattern: the first bits of the fractions of the square roots of 2, 3, 5, 7.
inline constexpr std::uint64_t key_0 = 0x6a09e667f3bcc909, key_1 = 0xbb67ae8584caa73b, key_2 = 0x3c6ef372fe94f82b,
                               key_3 = 0xa54ff53a5f1d36f1;

// Both halves of the 128-bit product, folded: every bit of the result hangs on every bit of a and b.
inline std::uint64_t fold(std::uint64_t a, std::uint64_t b) {
    const auto product = static_cast<unsigned __int128>(a) * b;
    return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
}

// A bijection of 64-bit numbers (the finalizer of splitmix64, Steele et al. 2014).
inline std::uint64_t mix(std::uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

inline std::uint64_t load8(const char* p) {
    std::uint64_t value;
    std::memcpy(&value, p, 8);
    return value;
}

inline std::uint64_t load4(const char* p) {
    std::uint32_t value;
    std::memcpy(&value, p, 4);
    return value;
}

// A text's 64-bit hash. Two seeds give two independent hashes. The same on every little-endian machine.
inline std::uint64_t hash_bytes(std::string_view text, std::uint64_t seed) {
    const auto byte = [&](std::size_t i) { return static_cast<std::uint64_t>(static_cast<unsigned char>(text[i])); };
    const char* at = text.data();
    const std::size_t size = text.size();
    std::uint64_t state = fold(seed ^ key_0, size ^ key_1);
    // Together with the size, `first` and `last` hold every byte of what is left (some of them twice).
    std::uint64_t first = 0, last = 0;
    if (size > 16)
        for (const char* end = at + size - 16; at < end; at += 16)
            state = fold(load8(at) ^ key_2 ^ state, load8(at + 8) ^ key_3);
    if (size >= 8) {
        first = load8(size > 16 ? text.data() + size - 16 : at);
        last = load8(text.data() + size - 8);
    } else if (size >= 4) {
        first = load4(at) | load4(at + size - 4) << 32;
    } else if (size > 0) {
        first = byte(0) | byte(size / 2) << 8 | byte(size - 1) << 16;
    }
    return mix(fold(first ^ key_1 ^ state, last ^ key_3) ^ state);
}

}  // namespace curation
