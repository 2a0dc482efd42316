// Phrases looked for in a text, whatever its case (see ../rules/bad_words.py).

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "lowercase.h"
#include "words.h"

namespace curation {

struct PhrasesFound {
    std::size_t count;
    std::string first;  // in lower case
};

// All phrases in one trie of bytes: a step down for each byte of the text as long as some phrase goes on.
class PhraseMatcher {
public:
    // With `whole_words` a phrase counts where no letter, digit or underscore stands on either side, as in the regular
    // expression (?:\W|^)(?:phrase|...)(?:\W|$); without, anywhere.
    PhraseMatcher(const std::vector<std::string>& phrases, bool whole_words) : whole_words_(whole_words), nodes_(1) {
        std::string lowered;
        for (const std::string& phrase : phrases) {
            lowercase(phrase, lowered);
            std::uint32_t node = 0;
            for (const char c : lowered) node = descend_or_add(node, static_cast<unsigned char>(c));
            if (node != 0) nodes_[node].ends = true;
        }
        for (const Child& child : nodes_[0].children) root_[child.byte] = child.node;
    }

    // Phrases that overlap count once, the longest of those that begin first.
    PhrasesFound find(std::string_view original) const {
        std::string text;
        lowercase(original, text);
        PhrasesFound found{0, {}};
        bool inside = false;  // a word
        for (std::size_t at = 0; at < text.size();) {
            if (root_[static_cast<unsigned char>(text[at])] != 0 && !(whole_words_ && inside)) {
                if (const std::size_t end = longest_from(text, at); end > at) {
                    if (found.count++ == 0) found.first = text.substr(at, end - at);
                    inside = false;
                    at = end;
                    continue;
                }
            }
            const Character character = decode(text, at);
            inside = is_word(character.code);
            at += character.bytes;
        }
        return found;
    }

private:
    struct Child {
        unsigned char byte;
        std::uint32_t node;
    };
    struct Node {
        std::vector<Child> children;
        bool ends = false;
    };

    static bool is_word(std::uint32_t code) {
        const Class c = characters().class_of(code);
        return starts_word(c) || c == Class::spaceless;
    }

    std::uint32_t child(std::uint32_t node, unsigned char byte) const {
        for (const Child& child : nodes_[node].children)
            if (child.byte == byte) return child.node;
        return 0;
    }

    std::uint32_t descend_or_add(std::uint32_t node, unsigned char byte) {
        if (const std::uint32_t found = child(node, byte)) return found;
        const auto added = static_cast<std::uint32_t>(nodes_.size());
        nodes_[node].children.push_back({byte, added});
        nodes_.emplace_back();
        return added;
    }

    std::size_t longest_from(std::string_view text, std::size_t begin) const {
        std::size_t longest = begin;
        std::uint32_t node = 0;
        for (std::size_t at = begin; at < text.size();) {
            node = child(node, static_cast<unsigned char>(text[at++]));
            if (node == 0) break;
            if (nodes_[node].ends && !(whole_words_ && at < text.size() && is_word(decode(text, at).code))) longest = at;
        }
        return longest;
    }

    bool whole_words_;
    std::vector<Node> nodes_;  // the first is the root, and no node's child
    std::array<std::uint32_t, 256> root_{};
};

}  // namespace curation
