// Lines and characters of UTF-8 text as Python counts them, and phrases in lines.

#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "words.h"

namespace curation {

// len() of the text as a Python string.
inline std::size_t count_characters(std::string_view text) {
    return static_cast<std::size_t>(
        std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }));
}

inline Class class_at(std::string_view text, std::size_t at) { return characters().class_of(decode(text, at).code); }

// Where the character before `end` begins.
inline std::size_t character_before(std::string_view text, std::size_t end) {
    std::size_t begin = end - 1;
    const std::size_t least = end > 4 ? end - 4 : 0;
    while (begin > least && (static_cast<unsigned char>(text[begin]) & 0xc0) == 0x80) --begin;
    return begin;
}

inline std::string_view strip_left(std::string_view text) {
    std::size_t begin = 0;
    while (begin < text.size()) {
        const Character character = decode(text, begin);
        if (characters().class_of(character.code) != Class::space) break;
        begin += character.bytes;
    }
    return text.substr(begin);
}

inline std::string_view strip_right(std::string_view text) {
    std::size_t end = text.size();
    while (end > 0) {
        const std::size_t begin = character_before(text, end);
        if (class_at(text, begin) != Class::space) break;
        end = begin;
    }
    return text.substr(0, end);
}

inline std::string_view strip(std::string_view text) { return strip_right(strip_left(text)); }

inline bool starts_with(std::string_view text, std::string_view start) { return text.substr(0, start.size()) == start; }

inline bool ends_with(std::string_view text, std::string_view end) {
    return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

// Calls use(line) for each line of text.split("\n").
template <typename Use>
void for_each_line(std::string_view text, Use use) {
    for (std::size_t begin = 0;;) {
        const std::size_t end = std::min(text.find('\n', begin), text.size());
        use(text.substr(begin, end - begin));
        if (end == text.size()) return;
        begin = end + 1;
    }
}

// Length in bytes of what ends a line at text[at] for str.splitlines(); 0 if nothing does.
inline std::size_t line_break(std::string_view text, std::size_t at) {
    const std::string_view rest = text.substr(at);
    const auto c = static_cast<unsigned char>(rest[0]);
    if (c == '\r') return starts_with(rest, "\r\n") ? 2 : 1;
    if ((c >= '\n' && c <= '\f') || (c >= 0x1c && c <= 0x1e)) return 1;
    if (starts_with(rest, "\xc2\x85")) return 2;                                         // U+0085
    return starts_with(rest, "\xe2\x80\xa8") || starts_with(rest, "\xe2\x80\xa9") ? 3 : 0;  // U+2028, U+2029
}

// Calls use(line) for each line of text.splitlines(), until it returns false.
template <typename Use>
void for_each_split_line(std::string_view text, Use use) {
    static constexpr auto may_break = [] {
        std::array<bool, 256> table{};
        for (const int c : {0x0a, 0x0b, 0x0c, 0x0d, 0x1c, 0x1d, 0x1e, 0xc2, 0xe2}) table[c] = true;
        return table;
    }();
    std::size_t begin = 0;
    for (std::size_t at = 0; at < text.size();) {
        if (!may_break[static_cast<unsigned char>(text[at])]) {
            ++at;
            continue;
        }
        const std::size_t length = line_break(text, at);
        if (length > 0) {
            if (!use(text.substr(begin, at - begin))) return;
            begin = at + length;
        }
        at += std::max<std::size_t>(length, 1);
    }
    if (begin < text.size()) use(text.substr(begin));
}

// text.count(needle)
inline std::size_t count_occurrences(std::string_view text, std::string_view needle) {
    std::size_t count = 0;
    for (std::size_t at = 0; (at = text.find(needle, at)) != std::string_view::npos; at += needle.size()) ++count;
    return count;
}

inline bool contains(std::string_view text, std::string_view phrase) {
    return memmem(text.data(), text.size(), phrase.data(), phrase.size()) != nullptr;
}

// The text with A to Z in lower case: the phrases that rules look for are ASCII.
inline std::string lower_ascii(std::string_view text) {
    std::string lowered(text);
    for (char& c : lowered) c = static_cast<char>(c + (static_cast<unsigned char>(c - 'A') < 26 ? 32 : 0));
    return lowered;
}

// Finds phrases (in lower case) in the lines of one text. Most texts hold none, and are then searched but once.
class PhraseFinder {
public:
    PhraseFinder(std::string_view text, const std::vector<std::string>& phrases)
        : text_(text), phrases_(phrases), lowered_(lower_ascii(text)) {
        for (std::size_t i = 0; i < phrases.size(); ++i)
            if (contains(lowered_, phrases[i])) present_.push_back(i);
    }

    static constexpr std::size_t none = ~std::size_t{0};

    // The number of the first phrase, in the phrases' order, that a part of the text holds.
    std::size_t first_in(std::string_view part) const {
        if (present_.empty()) return none;
        const auto begin = static_cast<std::size_t>(part.data() - text_.data());
        const std::string_view lowered = std::string_view(lowered_).substr(begin, part.size());
        for (const std::size_t i : present_)
            if (contains(lowered, phrases_[i])) return i;
        return none;
    }

    // The same for a line that was changed, and may hold what the text does not.
    std::size_t first_in_edited(std::string_view line) const {
        const std::string lowered = lower_ascii(line);
        for (std::size_t i = 0; i < phrases_.size(); ++i)
            if (contains(lowered, phrases_[i])) return i;
        return none;
    }

private:
    std::string_view text_;
    const std::vector<std::string>& phrases_;
    std::string lowered_;
    std::vector<std::size_t> present_;
};

}  // namespace curation
