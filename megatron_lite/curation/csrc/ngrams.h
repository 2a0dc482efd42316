// Runs of words that a text shares with a table of such runs (see ../rules/decontamination.py).

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "hash.h"
#include "lowercase.h"
#include "words.h"

namespace curation {

// The hashes of a text's words in lower case; symbols are left out.
inline std::vector<std::uint64_t> word_hashes(std::string_view original) {
    std::string text;
    lowercase(original, text);
    std::vector<std::uint64_t> hashes;
    Splitter splitter(text);
    for (Token token; splitter.next(token);)
        if (token.is_word)
            hashes.push_back(hash_bytes(std::string_view(text).substr(token.begin, token.end - token.begin), 1));
    return hashes;
}

inline std::uint64_t ngram_hash(const std::uint64_t* words, std::size_t count) {
    std::uint64_t state = count;
    for (std::size_t i = 0; i < count; ++i) state = fold(state ^ key_0, words[i] ^ key_1);
    return mix(state);
}

// Says of nearly every run of words that it begins like none of the table's, at three operations a word.
class StartFilter {
public:
    // The hash of the run's first words, by rotation and exclusive or (Cohen 1997), so that it rolls.
    static std::uint64_t hash(const std::uint64_t* words, std::size_t count) {
        std::uint64_t state = 0;
        for (std::size_t i = 0; i < count; ++i) state = rotate(state, 1) ^ words[i];
        return state;
    }
    static std::uint64_t roll(std::uint64_t state, std::uint64_t leaving, std::uint64_t entering, std::size_t count) {
        return rotate(state, 1) ^ rotate(leaving, count) ^ entering;
    }

    // `bits` words of a power of two.
    static bool may_hold(const std::uint64_t* bits, std::size_t words, std::uint64_t hash) {
        return bits[(hash >> 6) & (words - 1)] >> (hash & 63) & 1;
    }
    static void insert(std::vector<std::uint64_t>& bits, std::uint64_t hash) {
        bits[(hash >> 6) & (bits.size() - 1)] |= std::uint64_t{1} << (hash & 63);
    }

private:
    static std::uint64_t rotate(std::uint64_t x, std::size_t by) {
        by &= 63;
        return by == 0 ? x : x << by | x >> (64 - by);
    }
};

// Not copied: what the pointers point to must stay.
struct NGramTable {
    const std::uint64_t* hashes;  // ascending
    const std::uint32_t* items;   // which one a run stands in
    std::size_t size;
    const std::uint64_t* filter;
    std::size_t filter_words;
    std::size_t start_words;           // that the filter was made of: no run is shorter
    std::vector<std::size_t> lengths;  // of runs, in words, ascending

    // The row of a hash, or `size`.
    std::size_t find(std::uint64_t hash) const {
        const std::uint64_t* found = std::lower_bound(hashes, hashes + size, hash);
        return found != hashes + size && *found == hash ? static_cast<std::size_t>(found - hashes) : size;
    }
};

struct SharedPassage {
    std::size_t begin, end;  // code points of the text
    std::size_t words;
    std::uint32_t item;  // of its first run
};

struct SharedPassages {
    std::size_t words;  // of the text
    std::vector<SharedPassage> passages;
};

// From numbers of words, begin and end, to code points. Lower case leaves the splitter's tokens one to one.
inline void locate(std::string_view text, std::vector<SharedPassage>& passages) {
    std::size_t code_points = 0, counted = 0;  // of bytes
    const auto code_point = [&](std::size_t at) {
        for (; counted < at; ++counted) code_points += (static_cast<unsigned char>(text[counted]) & 0xc0) != 0x80;
        return code_points;
    };
    Splitter splitter(text);
    std::size_t word = 0;  // the number of the next one
    Token token{};
    const auto go_to = [&](std::size_t wanted) {
        while (word <= wanted && splitter.next(token)) word += token.is_word;
    };
    for (SharedPassage& passage : passages) {
        go_to(passage.begin);
        passage.begin = code_point(token.begin);
        go_to(passage.end - 1);
        passage.end = code_point(token.end);
    }
}

inline SharedPassages find_shared(std::string_view text, const NGramTable& table) {
    const std::vector<std::uint64_t> words = word_hashes(text);
    SharedPassages result{words.size(), {}};
    const std::size_t least = table.start_words;
    if (table.size == 0 || words.size() < least) return result;
    std::uint64_t start = StartFilter::hash(words.data(), least);
    for (std::size_t i = 0;; ++i) {
        if (StartFilter::may_hold(table.filter, table.filter_words, start)) {
            for (std::size_t n = table.lengths.size(); n-- > 0;) {
                const std::size_t length = table.lengths[n];
                if (i + length > words.size()) continue;
                const std::size_t row = table.find(ngram_hash(&words[i], length));
                if (row == table.size) continue;
                if (!result.passages.empty() && i <= result.passages.back().end)
                    result.passages.back().end = std::max(result.passages.back().end, i + length);
                else
                    result.passages.push_back({i, i + length, 0, table.items[row]});
                break;
            }
        }
        if (i + least >= words.size()) break;
        start = StartFilter::roll(start, words[i], words[i + least], least);
    }
    for (SharedPassage& passage : result.passages) passage.words = passage.end - passage.begin;
    locate(text, result.passages);
    return result;
}

}  // namespace curation
