// The defined splitter (see ../words.py for the definition; split_reference there says the same in Python).
//
//     Splitter splitter(text);             // UTF-8, not copied
//     for (Token token; splitter.next(token);)
//         use(text.substr(token.begin, token.end - token.begin), token.is_word);

#pragma once

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

// Class and case of every code point: pages of 256, equal pages stored once.
class CharacterTable {
public:
    Class class_of(std::uint32_t code) const { return static_cast<Class>(entry(code) & 0x7f); }
    bool is_uppercase(std::uint32_t code) const { return (entry(code) & 0x80) != 0; }

private:
    static constexpr std::uint32_t code_points = 0x110000, page_size = 256;

    std::uint8_t entry(std::uint32_t code) const {
        return code < code_points ? entries_[page_of_[code / page_size] * page_size + code % page_size] : 0;
    }

    CharacterTable() {
        std::vector<std::uint8_t> all(code_points, static_cast<std::uint8_t>(Class::symbol));
        const auto set = [&](const auto& runs, Class value) {
            for (const Run& run : runs)
                for (std::uint32_t code = run.first; code <= run.last; ++code) all[code] = static_cast<std::uint8_t>(value);
        };
        set(letter_runs, Class::letter);
        set(digit_runs, Class::digit);
        set(number_runs, Class::number);
        set(spaceless_runs, Class::spaceless);
        set(mark_runs, Class::mark);
        set(space_runs, Class::space);
        all['_'] = static_cast<std::uint8_t>(Class::underscore);
        for (const Run& run : uppercase_runs)
            for (std::uint32_t code = run.first; code <= run.last; ++code) all[code] |= 0x80;
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

inline Character decode(std::string_view text, std::size_t at) {
    const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(text[at + i]); };
    const std::uint32_t lead = byte(0);
    if (lead < 0x80) return {lead, 1};
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

struct Token {
    std::size_t begin, end;  // bytes of the text
    bool is_word;
};

class Splitter {
public:
    explicit Splitter(std::string_view text) : text_(text), table_(characters()) {}

    // False at the end of the text.
    bool next(Token& token) {
        for (; at_ < text_.size(); at_ += bytes_) {
            const Class first = look(at_);
            if (first == Class::space) continue;
            token.begin = at_;
            at_ += bytes_;
            token.is_word = true;
            if (starts_word(first)) {
                skip_run();
                skip_apostrophe_and_run();
            } else if (first == Class::spaceless) {
                while (at_ < text_.size() && look(at_) == Class::mark) at_ += bytes_;
            } else {
                token.is_word = false;
            }
            token.end = at_;
            return true;
        }
        return false;
    }

private:
    // The class of the character at `at`; its length goes to bytes_.
    Class look(std::size_t at) {
        const Character character = decode(text_, at);
        bytes_ = character.bytes;
        return table_.class_of(character.code);
    }

    void skip_run() {
        while (at_ < text_.size() && continues_word(look(at_))) at_ += bytes_;
    }

    void skip_apostrophe_and_run() {
        if (at_ >= text_.size()) return;
        const Character mark = decode(text_, at_);
        const std::size_t after = at_ + mark.bytes;
        if ((mark.code != '\'' && mark.code != 0x2019) || after >= text_.size() || !starts_word(look(after))) return;
        at_ = after;
        skip_run();
    }

    std::string_view text_;
    const CharacterTable& table_;
    std::size_t at_ = 0;
    std::uint32_t bytes_ = 1;
};

}  // namespace curation
