// RefinedWeb's line rules (Penedo et al. 2023, appendix G.2).

#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "lines.h"
#include "words.h"

namespace curation {

struct RefinedWebRules {
    double max_uppercase = 1;  // of a line's letters
    std::size_t short_words = 0;  // a line of at most so many words is edited
    // In lower case: the words of a counter ("3 likes"), and what is cut from short lines.
    std::vector<std::string> counters, starts, ends, anywhere;
};

struct RefinedWebLines {
    std::string text;  // the lines kept, a newline between them
    std::size_t words = 0, flagged_words = 0;  // of the whole text, and of the lines dropped or edited
    std::size_t uppercase = 0, numeric = 0, counter = 0, one_word = 0, edited = 0;  // lines flagged, and for what
};

class RefinedWebFilter {
public:
    RefinedWebFilter(std::string_view text, const RefinedWebRules& rules) : rules_(rules) {
        bool first = true;
        for_each_line(text, [&](std::string_view line) {
            const Shape shape = measure(line);
            result.words += shape.words;
            if (std::size_t* const reason = why_dropped(shape)) {
                ++*reason;
                result.flagged_words += shape.words;
                return;
            }
            if (!first) result.text.push_back('\n');
            first = false;
            append(line, shape.words);
        });
    }

    RefinedWebLines result;

private:
    struct Shape {
        std::size_t words = 0, numbers = 0, letters = 0, uppercase = 0;
        bool counts = false;  // the only word without a digit is one of a counter
    };

    Shape measure(std::string_view line) const {
        Shape shape;
        Splitter splitter(line);
        std::string_view word_without_digit;
        for (Token token; splitter.next(token);) {
            if (!token.is_word) continue;
            ++shape.words;
            const std::string_view word = line.substr(token.begin, token.end - token.begin);
            if (class_at(word, 0) == Class::digit || class_at(word, 0) == Class::number)
                ++shape.numbers;
            else
                word_without_digit = word;
            for (std::size_t at = 0; at < word.size();) {
                const Character character = decode(word, at);
                const Class c = characters().class_of(character.code);
                shape.letters += c == Class::letter || c == Class::spaceless;
                shape.uppercase += characters().is_uppercase(character.code);
                at += character.bytes;
            }
        }
        const bool one_without = shape.numbers > 0 && shape.words == shape.numbers + 1;
        shape.counts = one_without && holds(rules_.counters, lower_ascii(word_without_digit));
        return shape;
    }

    // The count of the rule that drops the line, or null. Lines without words structure the text, and stay.
    std::size_t* why_dropped(const Shape& shape) {
        if (shape.words == 0) return nullptr;
        const double most_uppercase = rules_.max_uppercase * static_cast<double>(shape.letters);
        if (static_cast<double>(shape.uppercase) > most_uppercase) return &result.uppercase;
        if (shape.letters == 0) return &result.numeric;
        if (shape.counts) return &result.counter;
        return shape.words == 1 ? &result.one_word : nullptr;
    }

    void append(std::string_view line, std::size_t words) {
        if (words == 0 || words > rules_.short_words) {
            result.text.append(line);
            return;
        }
        const std::string edited = edit(line);
        if (edited.size() != line.size()) {
            ++result.edited;
            result.flagged_words += words;
        }
        result.text.append(edited);
    }

    // The line without what menus and buttons left in it.
    std::string edit(std::string_view whole) const {
        std::string line(strip(whole)), lowered = lower_ascii(line);
        const auto cut = [&](std::size_t begin, std::size_t size) {
            line.erase(begin, size);
            lowered.erase(begin, size);
        };
        const std::size_t before = line.size();
        for (const std::string& phrase : rules_.anywhere)
            for (std::size_t at; (at = lowered.find(phrase)) != std::string::npos;) cut(at, phrase.size());
        for (const std::string& phrase : rules_.starts)
            if (starts_with(lowered, phrase)) cut(0, phrase.size());
        for (const std::string& phrase : rules_.ends)
            if (ends_with(lowered, phrase)) cut(lowered.size() - phrase.size(), phrase.size());
        return line.size() == before ? std::string(whole) : std::string(strip(line));
    }

    static bool holds(const std::vector<std::string>& words, std::string_view word) {
        return std::find(words.begin(), words.end(), word) != words.end();
    }

    const RefinedWebRules& rules_;
};

inline RefinedWebLines filter_refinedweb_lines(std::string_view text, const RefinedWebRules& rules) {
    return RefinedWebFilter(text, rules).result;
}

struct PhraseLines {
    std::string text;  // the lines kept, a newline between them
    std::size_t dropped = 0;
};

// Drops the lines (between newlines) of at most `max_words` words that hold one of the phrases, given in lower case.
inline PhraseLines drop_lines_with(std::string_view text, const std::vector<std::string>& phrases,
                                   std::size_t max_words) {
    PhraseLines result;
    const PhraseFinder finder(text, phrases);
    bool first = true;
    for_each_line(text, [&](std::string_view line) {
        if (finder.first_in(line) != PhraseFinder::none && count_words(line) <= max_words) {
            ++result.dropped;
            return;
        }
        if (!first) result.text.push_back('\n');
        first = false;
        result.text.append(line);
    });
    return result;
}

}  // namespace curation
