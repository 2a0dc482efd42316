// Where a 128-bit key stands in a column of keys.

#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace curation {

// A hash table of places in two columns, the halves of keys: 16 to 32 bytes a key beside the columns. Keys are hashes
// themselves, so their low bits choose the slot.
template <typename Column>
class KeyTable {
public:
    KeyTable(Column high, Column low) : high_(std::move(high)), low_(std::move(low)) {
        std::size_t slots = 16;
        while (slots < 2 * low_.size()) slots *= 2;
        slots_.assign(slots, -1);
    }

    std::size_t size() const { return low_.size(); }

    // The first place inserted whose key equals the one at `place`; `place` itself, inserted, if there is none.
    std::int64_t insert(std::size_t place) {
        std::int64_t& slot = slots_[slot_of(high_[place], low_[place])];
        if (slot < 0) slot = static_cast<std::int64_t>(place);
        return slot;
    }

    // The place of a key among those inserted, or -1.
    std::int64_t find(std::uint64_t high, std::uint64_t low) const { return slots_[slot_of(high, low)]; }

private:
    // The slot that holds the key, or the free one where it belongs.
    std::size_t slot_of(std::uint64_t high, std::uint64_t low) const {
        std::size_t slot = low & (slots_.size() - 1);
        while (slots_[slot] >= 0) {
            const auto place = static_cast<std::size_t>(slots_[slot]);
            if (high_[place] == high && low_[place] == low) break;
            slot = (slot + 1) & (slots_.size() - 1);
        }
        return slot;
    }

    Column high_, low_;
    std::vector<std::int64_t> slots_;
};

}  // namespace curation
