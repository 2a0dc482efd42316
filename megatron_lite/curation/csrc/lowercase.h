// Lower case of UTF-8 text, code point by code point (case_table.h): "Σ" becomes "σ" everywhere, "İ" becomes "i".

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "case_table.h"
#include "words.h"

namespace curation {

class CaseTable {
public:
    std::uint32_t lower(std::uint32_t code) const {
        return code < distances_.size() ? code + static_cast<std::uint32_t>(distances_[code]) : code;
    }

private:
    CaseTable() : distances_(std::end(case_runs)[-1].last + 1) {
        for (const CaseRun& run : case_runs)
            for (std::uint32_t code = run.first; code <= run.last; code += run.step) distances_[code] = run.distance;
    }

    std::vector<std::int32_t> distances_;

    friend const CaseTable& cases();
};

inline const CaseTable& cases() {
    static const CaseTable table;
    return table;
}

inline void append_utf8(std::string& text, std::uint32_t code) {
    const auto put = [&](std::uint32_t byte) { text.push_back(static_cast<char>(byte)); };
    if (code < 0x80) {
        put(code);
    } else if (code < 0x800) {
        put(0xc0 | code >> 6);
        put(0x80 | (code & 0x3f));
    } else if (code < 0x10000) {
        put(0xe0 | code >> 12);
        put(0x80 | (code >> 6 & 0x3f));
        put(0x80 | (code & 0x3f));
    } else {
        put(0xf0 | code >> 18);
        put(0x80 | (code >> 12 & 0x3f));
        put(0x80 | (code >> 6 & 0x3f));
        put(0x80 | (code & 0x3f));
    }
}

// `out` becomes the lower case of `text`; it is given so that its memory serves many texts.
inline void lowercase(std::string_view text, std::string& out) {
    out.resize(text.size());
    std::size_t ascii = 0;  // characters before the first one beyond ASCII
    constexpr std::size_t stride = 64;
    unsigned char seen = 0;
    const auto lower_ascii = [&](std::size_t begin, std::size_t end) {
        for (std::size_t i = begin; i < end; ++i) {
            const auto c = static_cast<unsigned char>(text[i]);
            seen |= c;
            out[i] = static_cast<char>(c + (static_cast<unsigned char>(c - 'A') < 26 ? 32 : 0));
        }
    };
    for (; ascii < text.size(); ascii += stride) {
        lower_ascii(ascii, std::min(ascii + stride, text.size()));
        if (seen >= 0x80) break;
    }
    if (ascii >= text.size()) return;
    const CaseTable& table = cases();
    out.resize(ascii);
    for (std::size_t at = ascii; at < text.size();) {
        const Character character = decode(text, at);
        const std::uint32_t lower = table.lower(character.code);
        if (lower == character.code)
            out.append(text.substr(at, character.bytes));  // bytes that are no UTF-8 stay as they are
        else
            append_utf8(out, lower);
        at += character.bytes;
    }
}

}  // namespace curation
