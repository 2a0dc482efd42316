// Where personal data or keys could stand in a text: one pass that finds few places, for patterns that decide
// (../rules/pii_patterns.py says what each kind is). A place too many costs time, one too few would hide data.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace curation {

enum class PiiKind : std::uint8_t { email, ipv4, ipv6, number, iban, assignment, key };

struct PiiPlace {
    PiiKind kind;
    std::size_t at;  // bytes
};

class PiiScanner {
public:
    // `prefixes` are what keys begin with: ASCII, none empty.
    explicit PiiScanner(std::vector<std::string> prefixes) : prefixes_(std::move(prefixes)) {
        for (int c = 0; c < 256; ++c) {
            const bool digit = c >= '0' && c <= '9', upper = c >= 'A' && c <= 'Z', lower = c >= 'a' && c <= 'z';
            std::uint8_t& bits = table_[static_cast<std::size_t>(c)];
            if (digit) bits |= is_digit;
            if (upper) bits |= is_upper;
            if (digit || upper || lower) bits |= is_alphanumeric;
            if (digit || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F')) bits |= is_hex;
            if (digit || c == '@' || c == '+' || c == '(' || c == '=' || c == ':') bits |= is_trigger;
        }
        for (const std::string& prefix : prefixes_) {
            const auto first = static_cast<unsigned char>(prefix[0]);
            by_first_[first].push_back(prefix);
            table_[first] |= is_prefix;
        }
    }

    std::vector<PiiPlace> find(std::string_view text) const {
        std::vector<PiiPlace> places;
        for (std::size_t i = 0; i < text.size(); ++i) {
            const std::uint8_t bits = bits_at(text, i);
            if (!(bits & (is_trigger | is_upper | is_prefix))) continue;
            const bool inside = i > 0 && ((bits_at(text, i - 1) & is_alphanumeric) || text[i - 1] == '_');
            if (bits & is_trigger) look_at_trigger(text, i, inside, places);
            if (bits & is_upper && !inside && begins_iban(text, i)) places.push_back({PiiKind::iban, i});
            const bool goes_on = bits & is_alphanumeric && (inside || (i > 0 && text[i - 1] == '-'));
            if (bits & is_prefix && !goes_on && begins_key(text, i))
                places.push_back({PiiKind::key, i});
        }
        return places;
    }

private:
    static constexpr std::uint8_t is_digit = 1, is_upper = 2, is_alphanumeric = 4, is_hex = 8, is_trigger = 16,
                                  is_prefix = 32;
    static constexpr std::size_t least_digits = 7, number_reach = 40;  // of a telephone number; how far it may stretch
    static constexpr std::size_t least_secret = 16, most_secret = 512;  // characters of a value that may be a secret
    static constexpr std::size_t most_local = 64;                      // characters before an address's @ (RFC 5321)

    std::uint8_t bits_at(std::string_view text, std::size_t i) const {
        return table_[static_cast<unsigned char>(text[i])];
    }

    static bool is_one_of(char c, std::string_view characters) { return characters.find(c) != std::string_view::npos; }

    void look_at_trigger(std::string_view text, std::size_t i, bool inside, std::vector<PiiPlace>& places) const {
        const char c = text[i];
        if (c == '@') return look_at_email(text, i, places);
        if (c == '=' || c == ':') return look_at_assignment(text, i, places);
        if (inside) return;
        if (bits_at(text, i) & is_digit) {
            if (begins_ipv4(text, i)) places.push_back({PiiKind::ipv4, i});
            if (begins_ipv6(text, i)) places.push_back({PiiKind::ipv6, i});
        }
        if (begins_number(text, i)) places.push_back({PiiKind::number, i});
    }

    void look_at_email(std::string_view text, std::size_t at, std::vector<PiiPlace>& places) const {
        std::size_t begin = at;
        while (begin > 0 && at - begin <= most_local &&
               (bits_at(text, begin - 1) & is_alphanumeric || is_one_of(text[begin - 1], "._%+-")))
            --begin;
        while (begin < at && is_one_of(text[begin], ".-")) ++begin;
        const bool has_domain = at + 1 < text.size() && bits_at(text, at + 1) & is_alphanumeric;
        if (begin < at && at - begin <= most_local && has_domain) places.push_back({PiiKind::email, begin});
    }

    // The value after = or : with what may stand around them: `name = "value`, `name: value`, `name => value`.
    void look_at_assignment(std::string_view text, std::size_t at, std::vector<PiiPlace>& places) const {
        std::size_t begin = at + 1;
        const auto skip = [&](std::string_view characters, std::size_t most) {
            for (; most > 0 && begin < text.size() && is_one_of(text[begin], characters); --most) ++begin;
        };
        skip("=>", 1);
        skip(" \t", 8);
        skip("\"'`", 3);
        std::size_t end = begin, digits = 0;
        while (end < text.size() && end - begin < most_secret && (bits_at(text, end) & is_alphanumeric || is_one_of(text[end], "+/_-.~"))) {
            digits += bits_at(text, end) & is_digit;
            ++end;
        }
        if (end - begin >= least_secret && digits >= 2) places.push_back({PiiKind::assignment, begin});
    }

    bool begins_ipv4(std::string_view text, std::size_t at) const {
        for (int part = 0; part < 4; ++part) {
            if (part > 0 && (at >= text.size() || text[at++] != '.')) return false;
            const std::size_t begin = at;
            while (at < text.size() && bits_at(text, at) & is_digit) ++at;
            if (at == begin || at - begin > 3) return false;
        }
        return true;
    }

    // Unicast addresses that are routed lie in 2000::/3, so they begin with four digits, the first of them 2 or 3.
    bool begins_ipv6(std::string_view text, std::size_t at) const {
        if (!is_one_of(text[at], "23") || text.size() - at < 6 || text[at + 4] != ':') return false;
        return bits_at(text, at + 1) & bits_at(text, at + 2) & bits_at(text, at + 3) & is_hex;
    }

    bool begins_number(std::string_view text, std::size_t at) const {
        std::size_t digits = 0;
        for (std::size_t i = at; i < text.size() && i - at < number_reach; ++i) {
            if (bits_at(text, i) & is_digit) {
                if (++digits == least_digits) return true;
            } else if (!is_one_of(text[i], " ().-/+")) {
                return false;
            }
        }
        return false;
    }

    // Two letters, two digits, and a letter or a digit, perhaps after a space.
    bool begins_iban(std::string_view text, std::size_t at) const {
        if (text.size() - at < 15 || !(bits_at(text, at + 1) & is_upper)) return false;
        if (!(bits_at(text, at + 2) & bits_at(text, at + 3) & is_digit)) return false;
        return bits_at(text, at + (text[at + 4] == ' ' ? 5 : 4)) & (is_digit | is_upper);
    }

    bool begins_key(std::string_view text, std::size_t at) const {
        for (const std::string& prefix : by_first_[static_cast<unsigned char>(text[at])])
            if (text.compare(at, prefix.size(), prefix) == 0) return true;
        return false;
    }

    std::vector<std::string> prefixes_;
    std::array<std::vector<std::string>, 256> by_first_;
    std::array<std::uint8_t, 256> table_{};
};

}  // namespace curation
