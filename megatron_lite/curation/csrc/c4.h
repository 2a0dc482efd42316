// C4's line rules (Raffel et al. 2020, section 2.2), in the order and with the details of the code that made C4.

#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "lines.h"

namespace curation {

struct C4Rules {
    std::string end_marks;                // a line must end with one of these bytes, and not with "..."; empty: any end
    std::size_t min_words = 0;            // of a line, between white space
    std::size_t max_word_characters = 0;  // a longer word drops its line; 0: none is too long
    bool remove_citations = false;
    // In lower case. The first one, in this order, that a line holds drops the line, or the whole document.
    std::vector<std::string> phrases;
    std::vector<bool> drops_document;  // one for each phrase
};

struct C4Lines {
    std::string text;  // the lines kept, a newline between them
    std::size_t kept = 0;
    std::size_t long_word = 0, no_end_mark = 0, few_words = 0, phrase = 0;  // lines dropped, and for what
    std::string document_phrase;  // for which the document goes: what follows it was not looked at
};

struct WhiteSpaceWords {
    std::size_t words = 0, longest = 0;  // in characters
};

inline WhiteSpaceWords measure_white_space_words(std::string_view line) {
    WhiteSpaceWords found;
    std::size_t length = 0;
    for (std::size_t at = 0; at < line.size();) {
        const Character character = decode(line, at);
        length = characters().class_of(character.code) == Class::space ? 0 : length + 1;
        found.words += length == 1;
        found.longest = std::max(found.longest, length);
        at += character.bytes;
    }
    return found;
}

// The line without [1], [], [edit] and [citation needed]; a digit is a decimal one of any script.
inline std::string without_citations(std::string_view line) {
    std::string kept;
    for (std::size_t at = 0; at < line.size();) {
        if (line[at] != '[') {
            kept.push_back(line[at++]);
            continue;
        }
        std::size_t end = at + 1;
        while (end < line.size() && class_at(line, end) == Class::digit) end += decode(line, end).bytes;
        const std::string_view rest = line.substr(at);
        if (end < line.size() && line[end] == ']') {
            at = end + 1;
        } else if (starts_with(rest, "[edit]")) {
            at += 6;
        } else if (starts_with(rest, "[citation needed]")) {
            at += 17;
        } else {
            kept.push_back(line[at++]);
        }
    }
    return kept;
}

inline bool ends_with_mark(std::string_view line, std::string_view end_marks) {
    return !line.empty() && end_marks.find(line.back()) != std::string_view::npos && !ends_with(line, "...");
}

class C4Filter {
public:
    C4Filter(std::string_view text, const C4Rules& rules) : text_(text), rules_(rules), finder_(text, rules.phrases) {
        for_each_split_line(text, [&](std::string_view line) { return judge(strip(line)); });
    }

    C4Lines result;

private:
    // False where the document goes.
    bool judge(std::string_view line) {
        if (has_long_word(line)) return count(result.long_word);
        const bool edited = rules_.remove_citations && line.find('[') != std::string_view::npos;
        if (edited) {
            edited_ = without_citations(line);
            line = edited_;
        }
        if (!rules_.end_marks.empty() && !ends_with_mark(line, rules_.end_marks)) return count(result.no_end_mark);
        if (measure_white_space_words(line).words < rules_.min_words) return count(result.few_words);
        const std::size_t phrase = edited ? finder_.first_in_edited(line) : finder_.first_in(line);
        if (phrase == PhraseFinder::none) {
            if (result.kept++ > 0) result.text.push_back('\n');
            result.text.append(line);
            return true;
        }
        if (!rules_.drops_document[phrase]) return count(result.phrase);
        result.document_phrase = rules_.phrases[phrase];
        return false;
    }

    bool has_long_word(std::string_view line) const {
        // No word has more characters than its line has bytes.
        const std::size_t most = rules_.max_word_characters;
        return most > 0 && line.size() > most && measure_white_space_words(line).longest > most;
    }

    static bool count(std::size_t& lines) {
        ++lines;
        return true;
    }

    std::string_view text_;
    const C4Rules& rules_;
    PhraseFinder finder_;
    std::string edited_;
};

inline C4Lines filter_c4_lines(std::string_view text, const C4Rules& rules) { return C4Filter(text, rules).result; }

}  // namespace curation
