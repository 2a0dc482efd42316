// The defined splitter (see ../words.py for the definition; split_reference there says the same in Python).
//
//     Splitter splitter(text);             // UTF-8, not copied
//     for (Token token; splitter.next(token);)
//         use(text.substr(token.begin, token.end - token.begin), token.is_word);

#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "word_table.h"

namespace curation {

// In this order: letter to underscore start a word, mark as well goes on with one.
enum class Class : std::uint8_t { symbol, space, letter, digit, number, underscore, mark, spaceless };

inline bool starts_word(Class c) { return c >= Class::letter && c <= Class::underscore; }
inline bool continues_word(Class c) { return c >= Class::letter && c <= Class::mark; }

// What is known of every code point: pages of 256, equal pages stored once.
class CharacterTable {
public:
    Class class_of(std::uint32_t code) const { return static_cast<Class>(entry(code) & class_bits); }
    bool is_uppercase(std::uint32_t code) const { return (entry(code) & uppercase_bit) != 0; }
    bool ends_sentence(std::uint32_t code) const { return (entry(code) & terminal_bit) != 0; }

private:
    static constexpr std::uint32_t code_points = 0x110000, page_size = 256;
    static constexpr std::uint8_t class_bits = 0x0f, uppercase_bit = 0x10, terminal_bit = 0x20;

    std::uint8_t entry(std::uint32_t code) const {
        if (code < page_size) return entries_[code];  // the first page is stored first
        return code < code_points ? entries_[page_of_[code / page_size] * page_size + code % page_size] : 0;
    }

    CharacterTable() {
        std::vector<std::uint8_t> all(code_points, static_cast<std::uint8_t>(Class::symbol));
        const auto set = [&](const auto& runs, Class value) {
            for (const Run& run : runs)
                std::fill(&all[run.first], &all[run.last] + 1, static_cast<std::uint8_t>(value));
        };
        set(letter_runs, Class::letter);
        set(digit_runs, Class::digit);
        set(number_runs, Class::number);
        set(spaceless_runs, Class::spaceless);
        set(mark_runs, Class::mark);
        set(space_runs, Class::space);
        all['_'] = static_cast<std::uint8_t>(Class::underscore);
        const auto flag = [&](const auto& runs, std::uint8_t bit) {
            for (const Run& run : runs)
                for (std::uint32_t code = run.first; code <= run.last; ++code) all[code] |= bit;
        };
        flag(uppercase_runs, uppercase_bit);
        flag(terminal_runs, terminal_bit);
        for (std::uint32_t page = 0; page < page_of_.size(); ++page) page_of_[page] = store(&all[page * page_size]);
    }

    std::uint16_t store(const std::uint8_t* page) {
        const std::basic_string_view<std::uint8_t> wanted(page, page_size);
        for (std::size_t i = 0; i < entries_.size(); i += page_size)
            if (wanted == std::basic_string_view<std::uint8_t>(&entries_[i], page_size))
                return static_cast<std::uint16_t>(i / page_size);
        entries_.insert(entries_.end(), page, page + page_size);
        return static_cast<std::uint16_t>(entries_.size() / page_size - 1);
    }

    // What str.isspace() calls white space.
    static constexpr Run space_runs[] = {{0x09, 0x0d},     {0x1c, 0x20},     {0x85, 0x85},     {0xa0, 0xa0},
                                         {0x1680, 0x1680}, {0x2000, 0x200a}, {0x2028, 0x2029}, {0x202f, 0x202f},
                                         {0x205f, 0x205f}, {0x3000, 0x3000}};

    std::array<std::uint16_t, code_points / page_size> page_of_{};
    std::vector<std::uint8_t> entries_;

    friend const CharacterTable& characters();
};

inline const CharacterTable& characters() {
    static const CharacterTable table;
    return table;
}

// The code point at text[at] and its length in bytes; a byte that begins no valid sequence is U+FFFD, one byte long.
struct Character {
    std::uint32_t code;
    std::uint32_t bytes;
};

inline Character decode_beyond_ascii(std::string_view text, std::size_t at) {
    const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(text[at + i]); };
    const std::uint32_t lead = byte(0);
    const std::uint32_t bytes = lead < 0xc2 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf5 ? 4 : 0;
    constexpr Character invalid{0xfffd, 1};
    if (bytes == 0 || text.size() - at < bytes) return invalid;
    std::uint32_t code = lead & (0x7f >> bytes);
    for (std::uint32_t i = 1; i < bytes; ++i) {
        if ((byte(i) & 0xc0) != 0x80) return invalid;
        code = code << 6 | (byte(i) & 0x3f);
    }
    const bool overlong = (bytes == 3 && code < 0x800) || (bytes == 4 && code < 0x10000);
    if (overlong || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) return invalid;
    return {code, bytes};
}

inline Character decode(std::string_view text, std::size_t at) {
    const auto lead = static_cast<std::uint8_t>(text[at]);
    return lead < 0x80 ? Character{lead, 1} : decode_beyond_ascii(text, at);
}

struct Token {
    std::size_t begin, end;  // bytes of the text
    bool is_word;
};

class Splitter {
public:
    explicit Splitter(std::string_view text) : text_(text), table_(characters()) {}

    // False at the end of the text.
    bool next(Token& token) {
        std::size_t at = at_;
        Seen first;
        for (;; at += first.bytes) {
            if (at >= text_.size()) {
                at_ = at;
                return false;
            }
            first = look(at);
            if (first.is != Class::space) break;
        }
        token.begin = at;
        token.is_word = true;
        at += first.bytes;
        if (starts_word(first.is)) {
            at = skip_run(at);
            const std::size_t after = skip_apostrophe(at);
            if (after < text_.size() && after > at && starts_word(look(after).is)) at = skip_run(after);
        } else if (first.is == Class::spaceless) {
            for (Seen seen; at < text_.size() && (seen = look(at)).is == Class::mark;) at += seen.bytes;
        } else {
            token.is_word = false;
        }
        token.end = at_ = at;
        return true;
    }

private:
    struct Seen {
        Class is;
        std::uint32_t bytes;
    };

    Seen look(std::size_t at) const {
        const Character character = decode(text_, at);
        return {table_.class_of(character.code), character.bytes};
    }

    std::size_t skip_run(std::size_t at) const {
        for (Seen seen; at < text_.size() && continues_word((seen = look(at)).is);) at += seen.bytes;
        return at;
    }

    std::size_t skip_apostrophe(std::size_t at) const {
        if (at >= text_.size()) return at;
        const Character mark = decode(text_, at);
        return mark.code == '\'' || mark.code == 0x2019 ? at + mark.bytes : at;
    }

    std::string_view text_;
    const CharacterTable& table_;
    std::size_t at_ = 0;
};

inline std::size_t count_words(std::string_view text) {
    std::size_t words = 0;
    Splitter splitter(text);
    for (Token token; splitter.next(token);) words += token.is_word;
    return words;
}

}  // namespace curation
