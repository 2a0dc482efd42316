// Clusters of documents: union-find over the edges between them (Tarjan 1975), and the similarity of two.

#pragma once

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

namespace curation {

// Sets of the numbers 0 .. size-1; the least number of a set is its root. 8 bytes a number.
class Clusters {
public:
    explicit Clusters(std::uint64_t size) : parents_(size) { std::iota(parents_.begin(), parents_.end(), 0); }

    std::uint64_t size() const { return parents_.size(); }

    // Paths are halved on the way, so that a later search is shorter.
    std::uint64_t root(std::uint64_t member) {
        check(member);
        while (parents_[member] != member) member = parents_[member] = parents_[parents_[member]];
        return member;
    }

    // False if both were in one set already.
    bool join(std::uint64_t a, std::uint64_t b) {
        a = root(a);
        b = root(b);
        if (a == b) return false;
        if (b < a) std::swap(a, b);
        parents_[b] = a;
        return true;
    }

    // Those that are not alone in their set, in order, and their roots.
    void members(std::vector<std::uint64_t>& numbers, std::vector<std::uint64_t>& roots) {
        std::vector<bool> has_others(parents_.size(), false);
        for (std::uint64_t i = 0; i < parents_.size(); ++i) {
            // A parent is less than its child, so it has been given its root before.
            parents_[i] = parents_[parents_[i]];
            if (parents_[i] != i) has_others[parents_[i]] = true;
        }
        for (std::uint64_t i = 0; i < parents_.size(); ++i) {
            if (!has_others[parents_[i]]) continue;
            numbers.push_back(i);
            roots.push_back(parents_[i]);
        }
    }

private:
    void check(std::uint64_t member) const {
        if (member >= parents_.size())
            throw std::out_of_range("number " + std::to_string(member) + " of " + std::to_string(parents_.size()));
    }

    std::vector<std::uint64_t> parents_;
};

// Join the sets of all pairs of `group` for which similar(a, b) holds. Pairs that are in one set already change nothing,
// so they are not asked about, and when all are in one set nothing is left to do.
template <typename Similar>
void join_similar(Clusters& clusters, const std::vector<std::uint64_t>& group, Similar similar) {
    std::unordered_set<std::uint64_t> roots;
    for (const std::uint64_t member : group) roots.insert(clusters.root(member));
    std::size_t apart = roots.size();
    for (std::size_t i = 0; i < group.size(); ++i)
        for (std::size_t j = i + 1; j < group.size() && apart > 1; ++j)
            if (clusters.root(group[i]) != clusters.root(group[j]) && similar(group[i], group[j]))
                apart -= clusters.join(group[i], group[j]);
}

// |a and b| / |a or b| of two ascending sequences without repetitions; two empty ones are equal.
inline double jaccard(const std::uint64_t* a, std::size_t a_size, const std::uint64_t* b, std::size_t b_size) {
    std::size_t i = 0, j = 0, common = 0;
    while (i < a_size && j < b_size) {
        const std::uint64_t x = a[i], y = b[j];
        common += x == y;
        i += x <= y;
        j += y <= x;
    }
    const std::size_t all = a_size + b_size - common;
    return all == 0 ? 1.0 : static_cast<double>(common) / static_cast<double>(all);
}

}  // namespace curation
