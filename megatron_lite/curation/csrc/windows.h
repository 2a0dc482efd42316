// Windows of consecutive tokens that occur elsewhere too, found by way of few anchors (see ../dedup/substring.py).
//
// The anchor of a window is its k-gram of least hash, a minimizer (Roberts et al. 2004): equal windows have equal
// anchors, and neighbouring windows mostly share theirs, so that a text of n tokens has some 2 n / (window - k + 2).

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "hash.h"
#include "words.h"

namespace curation {

// Numbers modulo the prime 2^61 - 1.
inline constexpr std::uint64_t prime = (std::uint64_t{1} << 61) - 1;

inline std::uint64_t reduce(std::uint64_t x) {  // x < 2^63
    x = (x & prime) + (x >> 61);
    return x >= prime ? x - prime : x;
}

inline std::uint64_t multiply(std::uint64_t a, std::uint64_t b) {
    const auto product = static_cast<unsigned __int128>(a) * b;
    return reduce((static_cast<std::uint64_t>(product) & prime) + static_cast<std::uint64_t>(product >> 61));
}

// The polynomial hash of the last `length` tokens (Karp and Rabin 1987): two different sequences are equal for
// length / 2^61 of all bases.
class RollingHash {
public:
    RollingHash(std::size_t length, std::uint64_t base) : base_(reduce(base >> 1)) {
        for (std::size_t i = 0; i < length; ++i) oldest_ = multiply(oldest_, base_);
    }

    // `leaving` is the token that entered `length` tokens before `entering`, 0 while there is none.
    void roll(std::uint64_t entering, std::uint64_t leaving) {
        value_ = reduce(multiply(value_, base_) + entering + prime - multiply(leaving, oldest_));
    }

    std::uint64_t value() const { return value_; }

private:
    std::uint64_t base_, oldest_ = 1, value_ = 0;
};

struct WindowSize {
    std::size_t window, anchor;  // tokens

    void check() const {
        if (anchor < 1 || anchor > window || window > 1 << 20)
            throw std::invalid_argument("window of " + std::to_string(window) + " tokens with an anchor of " +
                                        std::to_string(anchor) + ": 1 <= anchor <= window <= 2^20 is needed");
    }
};

struct Window {
    std::uint64_t begin;           // number of its first token in the document
    std::uint64_t anchor;          // hash
    std::uint64_t anchor_begin;    // number of the anchor's first token
    std::uint64_t key_hi, key_lo;  // 122 bits of hash: windows with equal ones are taken for equal
};

// The last `size` values.
class Ring {
public:
    explicit Ring(std::size_t size) : values_(size, 0) {}

    // Returns the value that was put in `size` values ago, 0 before there is one.
    std::uint64_t replace(std::uint64_t value) {
        std::swap(value, values_[next_]);
        if (++next_ == values_.size()) next_ = 0;
        return value;
    }

private:
    std::vector<std::uint64_t> values_;
    std::size_t next_ = 0;
};

// The least of the last `size` values, the latest one of equal ones. It is looked for only when the old one has left:
// once in size / 2 values on average, and a queue of candidates would mispredict a branch at every value.
class Least {
public:
    explicit Least(std::size_t size) : values_(size) {}

    // `number` counts the values from 0.
    void add(std::uint64_t value, std::uint64_t number) {
        values_[next_] = value;
        if (++next_ == values_.size()) next_ = 0;
        if (number == 0 || value <= value_) {
            value_ = value;
            number_ = number;
        } else if (number_ + values_.size() <= number) {
            search(number + 1 - values_.size());
        }
    }

    std::uint64_t value() const { return value_; }
    std::uint64_t number() const { return number_; }

private:
    void search(std::uint64_t oldest) {
        value_ = ~std::uint64_t{0};
        for (std::size_t i = 0, at = next_; i < values_.size(); ++i) {
            const bool less = values_[at] <= value_;
            value_ = less ? values_[at] : value_;
            number_ = less ? oldest + i : number_;
            at = at + 1 == values_.size() ? 0 : at + 1;
        }
    }

    std::vector<std::uint64_t> values_;
    std::size_t next_ = 0;
    std::uint64_t value_ = 0, number_ = 0;
};

// Calls use(Window) for each window of a text in order, in memory that grows with the window only.
template <typename Use>
void for_each_window(std::string_view text, WindowSize size, Use use) {
    Least least(size.window - size.anchor + 1);  // of the hashes of the anchors that a window holds
    Ring anchor_tokens(size.anchor), window_tokens(size.window);
    RollingHash anchor(size.anchor, key_0), high(size.window, key_1), low(size.window, key_2);
    std::uint64_t number = 0;
    Splitter splitter(text);
    for (Token token; splitter.next(token); ++number) {
        const std::uint64_t hash = hash_bytes(text.substr(token.begin, token.end - token.begin), 1) >> 4;
        const std::uint64_t leaving = window_tokens.replace(hash);
        anchor.roll(hash, anchor_tokens.replace(hash));
        high.roll(hash, leaving);
        low.roll(hash, leaving);
        if (number + 1 < size.anchor) continue;
        least.add(mix(anchor.value()), number + 1 - size.anchor);
        if (number + 1 < size.window) continue;
        use(Window{number + 1 - size.window, least.value(), least.number(), mix(high.value()), mix(low.value())});
    }
}

// The hashes of a text's anchors in order, one for each place where an anchor stands.
inline void append_anchors(std::string_view text, WindowSize size, std::vector<std::uint64_t>& out) {
    std::uint64_t previous = ~std::uint64_t{0};
    for_each_window(text, size, [&](const Window& window) {
        if (window.anchor_begin != previous) out.push_back(window.anchor);
        previous = window.anchor_begin;
    });
}

// A set of hashes: open addressing, never full.
class HashSet {
public:
    template <typename Values>
    explicit HashSet(const Values& values) {
        std::size_t slots = 16;
        while (slots < 2 * values.size()) slots *= 2;
        slots_.assign(slots, 0);
        for (std::size_t i = 0; i < values.size(); ++i) insert(values[i]);
    }

    bool contains(std::uint64_t value) const {
        if (value == 0) return has_zero_;
        for (std::size_t i = value & mask();; i = (i + 1) & mask()) {
            if (slots_[i] == value) return true;
            if (slots_[i] == 0) return false;
        }
    }

private:
    void insert(std::uint64_t value) {
        if (value == 0) has_zero_ = true;
        for (std::size_t i = value & mask(); value != 0; i = (i + 1) & mask()) {
            if (slots_[i] == value) return;
            if (slots_[i] == 0) {
                slots_[i] = value;
                return;
            }
        }
    }

    std::size_t mask() const { return slots_.size() - 1; }

    std::vector<std::uint64_t> slots_;
    bool has_zero_ = false;
};

// ---- the cut -----------------------------------------------------------------------------------------------------

struct Cut {
    std::string text;
    std::uint64_t removed_tokens, removed_bytes;
};

// `text` without the tokens of the windows that begin at the token numbers `begins` (ascending). Of the white space on
// the two sides of a removed stretch the one with more lines stays, the left one if they are equal; where neither side
// has any, a space is put, so that no two tokens become one. A text keeps the white space that it begins and ends with.
template <typename Numbers>
Cut cut_windows(std::string_view text, std::size_t window, const Numbers& begins) {
    Cut result{{}, 0, 0};
    result.text.reserve(text.size());
    const auto lines = [](std::string_view gap) { return std::count(gap.begin(), gap.end(), '\n'); };
    const auto joint = [&](std::string_view left, std::string_view right) {
        const std::string_view gap = left.empty() || lines(right) > lines(left) ? right : left;
        return gap.empty() ? std::string_view(" ") : gap;
    };
    std::string_view left;  // the white space before the stretch that is being removed
    bool removing = false;
    std::size_t next = 0, previous_end = 0, stays_from = 0;
    std::uint64_t number = 0, removed_until = 0;
    Splitter splitter(text);
    for (Token token; splitter.next(token); ++number) {
        for (; next < begins.size() && begins[next] <= number; ++next) removed_until = begins[next] + window;
        const bool removed = number < removed_until, none_kept = number == result.removed_tokens;
        if (removed != removing) {
            const std::string_view gap = text.substr(previous_end, token.begin - previous_end);
            if (removed) {
                left = gap;
                if (!none_kept) result.text.append(text.substr(stays_from, previous_end - stays_from));
            } else {
                result.text.append(none_kept ? left : joint(left, gap));
                stays_from = token.begin;
            }
            removing = removed;
        }
        result.removed_tokens += removed;
        previous_end = token.end;
    }
    if (next < begins.size() || removed_until > number)
        throw std::out_of_range("a window of " + std::to_string(window) + " tokens at token " +
                                std::to_string(begins[begins.size() - 1]) + " of a text of " + std::to_string(number));
    if (number > result.removed_tokens) result.text.append(text.substr(removing ? previous_end : stays_from));
    result.removed_bytes = text.size() - std::min(text.size(), result.text.size());
    return result;
}

}  // namespace curation
