// Lines, paragraphs and whole documents, and hashes that equal ones share (see ../dedup/paragraphs.py).

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "hash.h"
#include "lowercase.h"
#include "words.h"

namespace curation {

enum class UnitKind { line, paragraph, document };

struct Unit {
    std::size_t begin, end;  // bytes of the text: whole lines, a paragraph's with the blank ones behind it
};

inline bool is_blank(std::string_view line) {
    for (std::size_t at = 0; at < line.size();) {
        const Character character = decode(line, at);
        if (characters().class_of(character.code) != Class::space) return false;
        at += character.bytes;
    }
    return true;
}

// Calls use(Unit) in order. A line is a unit unless it is blank; a paragraph is a run of lines that are not; a document
// is one unit, blank or not.
template <typename Use>
void for_each_unit(std::string_view text, UnitKind kind, Use use) {
    if (kind == UnitKind::document) return use(Unit{0, text.size()});
    Unit unit{0, 0};
    bool open = false, blank_before = true;
    for (std::size_t begin = 0; begin < text.size();) {
        const std::size_t newline = text.find('\n', begin);
        const std::size_t end = newline == std::string_view::npos ? text.size() : newline + 1;
        const bool blank = is_blank(text.substr(begin, end - begin));
        if (!blank && (kind == UnitKind::line || blank_before)) {
            if (open) use(unit);
            unit.begin = begin;
            open = true;
        }
        if (kind == UnitKind::paragraph || !blank) unit.end = end;
        blank_before = blank;
        begin = end;
    }
    if (open) use(unit);
}

// What is compared: `exact` all but white space at the end, `words` the lower-cased words alone.
enum class Comparison { exact, words };

struct UnitKey {
    std::uint64_t hi, lo;
    std::uint64_t words;
};

class UnitHasher {
public:
    explicit UnitHasher(Comparison comparison) : comparison_(comparison) {}

    UnitKey hash(std::string_view unit) {
        if (comparison_ == Comparison::words) lowercase(unit, lowered_);
        const std::string_view text = comparison_ == Comparison::words ? std::string_view(lowered_) : unit;
        std::string_view compared;
        words_.clear();
        std::uint64_t words = 0;
        Splitter splitter(text);
        for (Token token; splitter.next(token);) {
            compared = text.substr(0, token.end);
            words += token.is_word;
            if (token.is_word) words_.append(text.substr(token.begin, token.end - token.begin)).push_back(' ');
        }
        if (comparison_ == Comparison::words) compared = words_;
        return {hash_bytes(compared, 2), hash_bytes(compared, 3), words};
    }

private:
    Comparison comparison_;
    std::string lowered_, words_;
};

}  // namespace curation
