// Byte pair encoding as SentencePiece does it, with the ids of words remembered.
//
// SentencePiece joins, anywhere in the text, the two neighbours whose joint piece has the highest score, the leftmost of
// equals, until no two neighbours make a piece. Between two bytes that stand side by side in no piece there is never a
// join, so the text falls into words there, whose ids do not depend on one another. A model that keeps scripts, digits
// and spaces apart, as most do, leaves short words, of which text has few different ones: most are looked up.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <bitset>
#include <cstdint>
#include <cstring>
#include <queue>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace py = pybind11;
using std::string_view;

namespace {

std::uint64_t hash_bytes(string_view bytes) {
    std::uint64_t h = 0x9e3779b97f4a7c15ull ^ bytes.size();
    const char* p = bytes.data();
    std::size_t left = bytes.size();
    const auto mix = [&h](std::uint64_t word) {
        h = (h ^ word) * 0xff51afd7ed558ccdull;
        h ^= h >> 32;
    };
    for (; left >= 8; p += 8, left -= 8) {
        std::uint64_t word;
        std::memcpy(&word, p, 8);
        mix(word);
    }
    std::uint64_t word = 0;
    std::memcpy(&word, p, left);
    mix(word);
    return h ^ (h >> 29);
}

// Strings, each with a number of 64 bits: an open hash table whose strings lie in one arena. Nothing is removed.
class Table {
   public:
    explicit Table(std::size_t capacity) { resize(capacity); }

    // The value of `key`, or null. Valid until the next insertion.
    const std::uint64_t* find(string_view key, std::uint64_t hash) const {
        for (std::size_t i = hash & mask_;; i = (i + 1) & mask_) {
            const Slot& slot = slots_[i];
            if (slot.size == EMPTY) return nullptr;
            if (slot.hash == hash && slot.size == key.size() && std::memcmp(&arena_[slot.begin], key.data(), key.size()) == 0)
                return &slot.value;
        }
    }

    // `key` must not be there.
    void insert(string_view key, std::uint64_t hash, std::uint64_t value) {
        if (2 * (used_ + 1) > slots_.size()) resize(2 * slots_.size());
        place({hash, value, arena_.size(), key.size()});
        arena_.insert(arena_.end(), key.begin(), key.end());
        ++used_;
    }

    std::size_t size() const { return used_; }

   private:
    static constexpr std::size_t EMPTY = ~std::size_t{0};
    struct Slot {
        std::uint64_t hash, value;
        std::size_t begin, size;
    };

    void place(const Slot& slot) {
        std::size_t i = slot.hash & mask_;
        while (slots_[i].size != EMPTY) i = (i + 1) & mask_;
        slots_[i] = slot;
    }

    void resize(std::size_t capacity) {
        std::size_t power = 16;
        while (power < capacity) power *= 2;
        std::vector<Slot> old(power, Slot{0, 0, 0, EMPTY});
        old.swap(slots_);
        mask_ = power - 1;
        for (const Slot& slot : old)
            if (slot.size != EMPTY) place(slot);
    }

    std::vector<Slot> slots_;
    std::vector<char> arena_;
    std::size_t mask_ = 0, used_ = 0;
};

bool begins_character(char byte) { return (byte & 0xc0) != 0x80; }

// A byte and the one before it, as one number below 2^16.
std::size_t neighbours(const char* byte) {
    return static_cast<unsigned char>(byte[-1]) << 8 | static_cast<unsigned char>(byte[0]);
}

std::size_t character_size(unsigned char first) { return first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4; }

class Encoder {
   public:
    // pieces: text (a space is a space), score and id of every piece that text can become; byte_ids: of bytes 0 to 255.
    Encoder(const std::vector<std::tuple<std::string, float, std::int32_t>>& pieces,
            const std::vector<std::int32_t>& byte_ids)
        : pieces_(2 * pieces.size()), words_(1 << 16), byte_ids_(byte_ids) {
        if (byte_ids.size() != 256) throw std::invalid_argument("byte_ids has " + std::to_string(byte_ids.size()) + " ids");
        for (const auto& [text, score, id] : pieces) {
            const std::uint64_t hash = hash_bytes(text);
            if (id < 0 || pieces_.find(text, hash)) throw std::invalid_argument("a piece twice, or of a negative id");
            pieces_.insert(text, hash, entry_.size());
            entry_.push_back({score, id});
            for (std::size_t i = 1; i < text.size(); ++i) inside_.set(neighbours(&text[i]));
        }
    }

    // int32 [tokens] of a text. Raises UnicodeEncodeError for half a surrogate pair.
    py::array_t<std::int32_t> encode(const py::str& text) {
        Py_ssize_t size = 0;
        const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
        if (!data) throw py::error_already_set();
        ids_.clear();
        std::size_t begin = 0;
        const std::size_t end = size;
        for (std::size_t i = 1; i <= end; ++i)
            if (i == end || (begins_character(data[i]) && !inside_[neighbours(data + i)])) {
                encode_word(string_view(data + begin, i - begin));
                begin = i;
            }
        py::array_t<std::int32_t> result(static_cast<Py_ssize_t>(ids_.size()));
        std::copy(ids_.begin(), ids_.end(), result.mutable_data());
        return result;
    }

   private:
    static constexpr std::size_t LONGEST_WORD = 64;     // bytes of a word that is remembered
    static constexpr std::size_t MOST_WORDS = 1 << 18;  // about 25 MB with their ids
    static constexpr std::int32_t NONE = -1;

    struct Entry {
        float score;
        std::int32_t id;
    };
    struct Symbol {
        std::int32_t previous, next;
        std::uint32_t begin, size;  // size 0: joined to the one before it
    };
    struct Pair {
        float score;
        std::int32_t left, right;
        std::uint32_t size;
        bool operator<(const Pair& other) const {
            return score < other.score || (score == other.score && left > other.left);
        }
    };

    const Entry* find_piece(string_view text) const {
        const std::uint64_t* index = pieces_.find(text, hash_bytes(text));
        return index ? &entry_[*index] : nullptr;
    }

    void encode_word(string_view word) {
        if (word.size() > LONGEST_WORD) return join(word);
        const std::uint64_t hash = hash_bytes(word);
        // A word's value: where its ids lie in known_ids_, and how many they are.
        if (const std::uint64_t* known = words_.find(word, hash)) {
            const std::int32_t* ids = known_ids_.data() + (*known >> 8);
            ids_.insert(ids_.end(), ids, ids + (*known & 0xff));
            return;
        }
        const std::size_t before = ids_.size();
        join(word);
        if (words_.size() < MOST_WORDS) {
            words_.insert(word, hash, known_ids_.size() << 8 | (ids_.size() - before));
            known_ids_.insert(known_ids_.end(), ids_.begin() + before, ids_.end());
        }
    }

    void join(string_view word) {
        if (word.size() >= std::size_t{1} << 31) throw std::invalid_argument("a word of 2^31 bytes or more");
        symbols_.clear();
        while (!pairs_.empty()) pairs_.pop();  // where memory ran out in the call before
        for (std::size_t begin = 0; begin < word.size();) {
            const std::size_t size = std::min(character_size(word[begin]), word.size() - begin);
            const auto index = static_cast<std::int32_t>(symbols_.size());
            const bool last = begin + size == word.size();
            symbols_.push_back({index - 1, last ? NONE : index + 1, std::uint32_t(begin), std::uint32_t(size)});
            begin += size;
        }
        for (std::size_t i = 1; i < symbols_.size(); ++i) offer(word, i - 1, i);
        while (!pairs_.empty()) {
            const Pair pair = pairs_.top();
            pairs_.pop();
            Symbol &left = symbols_[pair.left], &right = symbols_[pair.right];
            // Either has been joined to another meanwhile.
            if (left.size == 0 || right.size == 0 || left.size + right.size != pair.size) continue;
            left.size += right.size;
            right.size = 0;
            left.next = right.next;
            if (right.next != NONE) symbols_[right.next].previous = pair.left;
            offer(word, left.previous, pair.left);
            offer(word, pair.left, left.next);
        }
        for (std::int32_t i = symbols_.empty() ? NONE : 0; i != NONE; i = symbols_[i].next)
            append(word.substr(symbols_[i].begin, symbols_[i].size));
    }

    void offer(string_view word, std::int32_t left, std::int32_t right) {
        if (left == NONE || right == NONE) return;
        const std::uint32_t size = symbols_[left].size + symbols_[right].size;
        if (const Entry* piece = find_piece(word.substr(symbols_[left].begin, size)))
            pairs_.push({piece->score, left, right, size});
    }

    void append(string_view text) {
        if (const Entry* piece = find_piece(text)) {
            ids_.push_back(piece->id);
            return;
        }
        for (const char byte : text) ids_.push_back(byte_ids_[static_cast<unsigned char>(byte)]);
    }

    std::bitset<1 << 16> inside_;  // the neighbours that stand in any piece
    Table pieces_, words_;
    std::vector<Entry> entry_;
    std::vector<std::int32_t> byte_ids_, known_ids_, ids_;
    std::vector<Symbol> symbols_;
    std::priority_queue<Pair> pairs_;
};

}  // namespace

PYBIND11_MODULE(_bpe, module) {
    module.doc() = "Byte pair encoding with SentencePiece's ids.";
    py::class_<Encoder>(module, "Encoder")
        .def(py::init<const std::vector<std::tuple<std::string, float, std::int32_t>>&, const std::vector<std::int32_t>&>(),
             py::arg("pieces"), py::arg("byte_ids"),
             "pieces: (text, score, id) of every piece that text can become, a space written as one.\n"
             "byte_ids: the ids of bytes 0 to 255. Raises ValueError for a piece that is there twice.")
        .def("encode", &Encoder::encode, py::arg("text"), "int32 [tokens]. Not for several threads at once.");
}
