// Lists of domains and addresses to block, as hashes (see ../rules/urls.py).

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "hash.h"

namespace curation {

inline std::uint64_t address_hash(std::string_view address) { return hash_bytes(address, 0); }

// The address that a line of a list names, without scheme, "www." and final dots and slashes, in lower case; empty where
// it names none. Lines may be domains, addresses, hosts files' ("0.0.0.0 domain") or ad blockers' ("||domain^").
inline std::string listed_address(std::string_view line) {
    line = line.substr(0, line.find('#'));
    const auto last = line.find_last_not_of(" \t\r");
    if (last == std::string_view::npos || line.front() == '!') return {};
    line = line.substr(0, last + 1);
    if (const auto space = line.find_last_of(" \t"); space != std::string_view::npos) line.remove_prefix(space + 1);
    const auto drop_front = [&](std::string_view front) {
        if (line.substr(0, front.size()) == front) line.remove_prefix(front.size());
    };
    drop_front("||");
    line = line.substr(0, line.find('^'));
    drop_front("http://");
    drop_front("https://");
    std::string address;
    for (const char c : line) address.push_back(c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c);
    if (address.compare(0, 4, "www.") == 0) address.erase(0, 4);
    while (!address.empty() && (address.back() == '/' || address.back() == '.')) address.pop_back();
    return address;
}

// The hashes of all addresses of a list's lines, ascending, each once.
inline std::vector<std::uint64_t> listed_hashes(std::string_view list) {
    std::vector<std::uint64_t> hashes;
    for (std::size_t begin = 0; begin < list.size();) {
        const std::size_t end = std::min(list.find('\n', begin), list.size());
        if (const std::string address = listed_address(list.substr(begin, end - begin)); !address.empty())
            hashes.push_back(address_hash(address));
        begin = end + 1;
    }
    std::sort(hashes.begin(), hashes.end());
    hashes.erase(std::unique(hashes.begin(), hashes.end()), hashes.end());
    return hashes;
}

}  // namespace curation
