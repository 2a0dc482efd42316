// What the Gopher repetition rules ask of a text (Rae et al. 2021, table A1). Equality is exact everywhere: hashes only
// find where to compare.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string_view>
#include <vector>

#include "hash.h"
#include "lines.h"
#include "words.h"

namespace curation {

// Numbers equal strings alike: 0, 1, 2, ... in the order of their first appearance. Keeps views, not copies.
class Interner {
public:
    Interner() : slots_(initial_slots) {}

    std::uint32_t id(std::string_view text) {
        if (text.size() == 1) return id_of_byte(text);
        const std::uint64_t hash = hash_bytes(text, 0);
        const std::size_t mask = slots_.size() - 1;
        std::size_t slot = hash & mask;
        for (; slots_[slot] != 0; slot = (slot + 1) & mask) {
            const Entry& entry = entries_[slots_[slot] - 1];
            if (entry.hash == hash && entry.text == text) return slots_[slot] - 1;
        }
        entries_.push_back({hash, text});
        slots_[slot] = static_cast<std::uint32_t>(entries_.size());
        if (entries_.size() * 2 > slots_.size()) grow();
        return static_cast<std::uint32_t>(entries_.size() - 1);
    }

    std::size_t size() const { return entries_.size(); }

private:
    static constexpr std::size_t initial_slots = 512;

    struct Entry {
        std::uint64_t hash;
        std::string_view text;
    };

    // Most symbols are one byte: they need no hash.
    std::uint32_t id_of_byte(std::string_view text) {
        std::uint32_t& number = bytes_[static_cast<unsigned char>(text[0])];
        if (number == 0) {
            entries_.push_back({0, text});
            number = static_cast<std::uint32_t>(entries_.size());
        }
        return number - 1;
    }

    void grow() {
        slots_.assign(slots_.size() * 2, 0);
        const std::size_t mask = slots_.size() - 1;
        for (std::size_t i = 0; i < entries_.size(); ++i) {
            if (entries_[i].text.size() == 1) continue;
            std::size_t slot = entries_[i].hash & mask;
            while (slots_[slot] != 0) slot = (slot + 1) & mask;
            slots_[slot] = static_cast<std::uint32_t>(i + 1);
        }
    }

    std::array<std::uint32_t, 256> bytes_{};  // number + 1 of the strings of one byte; 0: not seen
    std::vector<std::uint32_t> slots_;        // number + 1 of the others, by hash; 0: empty
    std::vector<Entry> entries_;
};

struct Duplicates {
    std::size_t parts = 0, duplicates = 0, duplicate_characters = 0;  // a duplicate: seen before in the text
};

class DuplicateCounter {
public:
    void add(std::string_view part) {
        const std::size_t before = seen_.size();
        ++counts_.parts;
        seen_.id(part);
        if (seen_.size() > before) return;
        ++counts_.duplicates;
        counts_.duplicate_characters += count_characters(part);
    }

    const Duplicates& counts() const { return counts_; }

private:
    Interner seen_;
    Duplicates counts_;
};

// Parts of the text between runs of at least `least` newlines.
inline Duplicates count_duplicates(std::string_view text, std::size_t least) {
    DuplicateCounter counter;
    std::size_t begin = 0;
    for (std::size_t at = 0; (at = text.find('\n', at)) != std::string_view::npos;) {
        const std::size_t after = std::min(text.find_first_not_of('\n', at), text.size());
        if (after - at >= least) {
            counter.add(text.substr(begin, at - begin));
            begin = after;
        }
        at = after;
    }
    counter.add(text.substr(begin));
    return counter.counts();
}

inline constexpr std::size_t shortest_top = 2, longest_top = 4, shortest_duplicate = 5, longest_duplicate = 10;

struct Repetition {
    std::size_t characters = 0;
    Duplicates paragraphs, lines;
    // Characters of the most frequent n-gram, with a space between tokens, times its occurrences; 0 without n-grams.
    std::array<std::size_t, longest_top - shortest_top + 1> top{};
    // Characters of the n-grams (without spaces) that stood before, from left to right, none overlapping another.
    std::array<std::size_t, longest_duplicate - shortest_duplicate + 1> duplicate{};
};

// Numbers of pairs of numbers, each below 2^32 - 1.
class PairTable {
public:
    // The pair's number; a pair that is new takes `next`, which grows.
    std::uint32_t number(std::uint32_t first, std::uint32_t second, std::uint32_t& next) {
        if (slots_.empty()) slots_.assign(initial_slots, {empty, 0});
        Slot& slot = find(static_cast<std::uint64_t>(first) << 32 | second);
        if (slot.pair != empty) return slot.number;
        slot = {static_cast<std::uint64_t>(first) << 32 | second, next};
        if (++size_ * 2 > slots_.size()) grow();
        return next++;
    }

private:
    static constexpr std::uint64_t empty = ~std::uint64_t{0};
    static constexpr std::size_t initial_slots = 256;

    struct Slot {
        std::uint64_t pair;
        std::uint32_t number;
    };

    Slot& find(std::uint64_t pair) {
        const std::size_t mask = slots_.size() - 1;
        std::size_t at = fold(pair ^ key_0, key_1) & mask;
        while (slots_[at].pair != empty && slots_[at].pair != pair) at = (at + 1) & mask;
        return slots_[at];
    }

    void grow() {
        std::vector<Slot> old(slots_.size() * 4, {empty, 0});
        old.swap(slots_);
        for (const Slot& slot : old)
            if (slot.pair != empty) find(slot.pair) = slot;
    }

    std::vector<Slot> slots_;
    std::size_t size_ = 0;
};

// The n-grams of one text, n growing from 1. Only where both n-grams at i and i + 1 are repeated somewhere can the
// (n+1)-gram at i be, so each step looks at fewer places than the one before.
class NGrams {
public:
    explicit NGrams(std::string_view text) {
        Interner tokens;
        const bool ascii = count_characters(text) == text.size();
        std::uint32_t characters = 0;
        places_.reserve(text.size() / 4);
        ends_.reserve(text.size() / 4);
        Splitter splitter(text);
        for (Token token; splitter.next(token);) {
            const std::string_view part = text.substr(token.begin, token.end - token.begin);
            places_.push_back({static_cast<std::uint32_t>(ends_.size()), count(tokens.id(part))});
            characters += static_cast<std::uint32_t>(ascii ? part.size() : count_characters(part));
            ends_.push_back(characters);
        }
        keep_repeated();
    }

    // From n-grams to (n+1)-grams.
    void lengthen() {
        ++n_;
        PairNumbers pairs(counts_.size());
        counts_.clear();
        std::size_t kept = 0;
        for (std::size_t i = 0; i + 1 < places_.size(); ++i) {
            const Place here = places_[i], next = places_[i + 1];
            if (next.token != here.token + 1) continue;
            places_[kept++] = {here.token, count(pairs.number(here.gram, next.gram))};
        }
        places_.resize(kept);
        keep_repeated();
    }

    // Of n-grams with equal counts the first in the text counts; if none is repeated, that is the text's first.
    std::size_t top_characters() const {
        if (ends_.size() < n_) return 0;
        Place top{0, 0};
        std::size_t most = 1;
        for (const Place& place : places_)
            if (counts_[place.gram] > most) {
                most = counts_[place.gram];
                top = place;
            }
        return (characters_at(top) + n_ - 1) * most;
    }

    std::size_t duplicate_characters() const {
        std::vector<bool> seen(counts_.size());
        std::size_t characters = 0, next = 0;
        for (const Place& place : places_) {
            if (place.token < next) continue;
            if (seen[place.gram]) {
                characters += characters_at(place);
                next = place.token + n_;
            }
            seen[place.gram] = true;
        }
        return characters;
    }

private:
    struct Place {
        std::uint32_t token, gram;  // the n-gram's first token, and its number
    };

    // Numbers pairs of n-grams that follow each other: 0, 1, 2, ... in the order of their first appearance.
    class PairNumbers {
    public:
        explicit PairNumbers(std::size_t grams) : first_successors_(grams, {none, 0}) {}

        // Most n-grams are followed by one other alone, so the first successor is kept apart from all others.
        std::uint32_t number(std::uint32_t gram, std::uint32_t successor) {
            Successor& first = first_successors_[gram];
            if (first.gram == successor) return first.number;
            if (first.gram != none) return others_.number(gram, successor, next_);
            first = {successor, next_};
            return next_++;
        }

    private:
        static constexpr std::uint32_t none = ~std::uint32_t{0};  // no text has so many n-grams

        struct Successor {
            std::uint32_t gram, number;
        };

        std::vector<Successor> first_successors_;
        PairTable others_;
        std::uint32_t next_ = 0;
    };

    // One more of the n-gram; numbers come as 0, 1, 2, ...
    std::uint32_t count(std::uint32_t gram) {
        if (gram == counts_.size())
            counts_.push_back(1);
        else
            ++counts_[gram];
        return gram;
    }

    void keep_repeated() {
        std::size_t kept = 0;
        for (const Place place : places_) {
            places_[kept] = place;  // without a branch, which would go either way
            kept += counts_[place.gram] > 1;
        }
        places_.resize(kept);
    }

    std::size_t characters_at(const Place& place) const {
        return ends_[place.token + n_ - 1] - (place.token == 0 ? 0 : ends_[place.token - 1]);
    }

    std::size_t n_ = 1;
    std::vector<std::uint32_t> ends_;    // characters of the tokens up to and with each
    std::vector<Place> places_;          // of repeated n-grams, in the text's order
    std::vector<std::uint32_t> counts_;  // of each n-gram, unique ones too
};

inline Repetition measure_repetition(std::string_view text) {
    if (text.size() >= std::uint64_t{1} << 32) throw std::length_error("a text of 4 GiB or more");
    Repetition repetition;
    repetition.characters = count_characters(text);
    repetition.paragraphs = count_duplicates(strip(text), 2);
    repetition.lines = count_duplicates(text, 1);
    NGrams grams(text);
    for (std::size_t n = shortest_top; n <= longest_duplicate; ++n) {
        grams.lengthen();
        if (n <= longest_top)
            repetition.top[n - shortest_top] = grams.top_characters();
        else
            repetition.duplicate[n - shortest_duplicate] = grams.duplicate_characters();
    }
    return repetition;
}

}  // namespace curation
