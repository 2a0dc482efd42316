// What deduplication computes over text and over hashes, for ../dedup: bindings of the headers beside this file.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "clusters.h"
#include "keys.h"
#include "minhash.h"
#include "units.h"
#include "windows.h"

namespace py = pybind11;

namespace {

using namespace curation;
using std::to_string;

// A contiguous one-dimensional numpy array of exactly this type.
template <typename T>
class Values {
public:
    Values(const py::array& array, const char* name) : owner_(array) {
        const bool contiguous = array.ndim() == 1 && (array.size() < 2 || array.strides(0) == sizeof(T));
        if (!array.dtype().equal(py::dtype::of<T>()) || !contiguous)
            throw std::invalid_argument(std::string(name) + " must be a contiguous one-dimensional array of " +
                                        std::string(py::str(py::dtype::of<T>())));
        data_ = static_cast<const T*>(array.data());
        size_ = static_cast<std::size_t>(array.size());
    }

    std::size_t size() const { return size_; }
    const T* data() const { return data_; }
    T operator[](std::size_t i) const { return data_[i]; }

private:
    py::array owner_;
    const T* data_;
    std::size_t size_;
};

// The UTF-8 of strings, which stay alive as long as this.
class Texts {
public:
    explicit Texts(const py::sequence& texts) : owner_(texts) {
        for (const py::handle text : owner_) views_.push_back(py::cast<std::string_view>(text));
    }

    std::size_t size() const { return views_.size(); }
    std::string_view operator[](std::size_t i) const { return views_[i]; }

private:
    py::tuple owner_;
    std::vector<std::string_view> views_;
};

// A numpy array that owns the vector.
template <typename T>
py::array_t<T> to_array(std::vector<T>&& values) {
    auto* held = new std::vector<T>(std::move(values));
    const py::capsule owner(held, [](void* vector) { delete static_cast<std::vector<T>*>(vector); });
    return py::array_t<T>(static_cast<py::ssize_t>(held->size()), held->data(), owner);
}

// Columns of equal length that name places in documents by two hashes: what windows() and units() return.
struct Places {
    std::vector<std::uint64_t> hi, lo;
    std::vector<std::uint32_t> document, number;

    void add(std::uint64_t key_hi, std::uint64_t key_lo, std::size_t in_document, std::uint64_t at) {
        constexpr std::uint64_t limit = std::uint64_t{1} << 32;
        if (in_document >= limit || at >= limit)
            throw std::out_of_range("place " + to_string(at) + " of document " + to_string(in_document) +
                                    ": both must be below 2^32");
        hi.push_back(key_hi);
        lo.push_back(key_lo);
        document.push_back(static_cast<std::uint32_t>(in_document));
        number.push_back(static_cast<std::uint32_t>(at));
    }

    py::tuple columns() {
        return py::make_tuple(to_array(std::move(hi)), to_array(std::move(lo)), to_array(std::move(document)),
                              to_array(std::move(number)));
    }
};

// ---- near duplicates ---------------------------------------------------------------------------------------------

const InstructionSet& find_instruction_set(const std::string& name) {
    static const std::vector<InstructionSet> sets = instruction_sets();
    if (name.empty()) return sets.back();
    std::string names;
    for (const InstructionSet& set : sets) {
        if (name == set.name) return set;
        names += std::string(names.empty() ? "" : ", ") + set.name;
    }
    throw std::invalid_argument("instruction set '" + name + "' is none of this processor's: " + names);
}

py::tuple band_hashes(const py::sequence& sequence, std::uint64_t seed, const std::string& instruction_set) {
    const Texts texts(sequence);
    const Permutations permutation(seed);
    Signer signer(permutation, find_instruction_set(instruction_set).lower_minima);
    const auto count = static_cast<py::ssize_t>(texts.size());
    py::array_t<std::uint64_t> hashes({count, static_cast<py::ssize_t>(bands)});
    py::array_t<bool> has_tokens(count);
    std::uint64_t* out = hashes.mutable_data();
    bool* has = has_tokens.mutable_data();
    std::fill(out, out + texts.size() * bands, 0);
    {
        py::gil_scoped_release unlocked;
        for (std::size_t i = 0; i < texts.size(); ++i) has[i] = signer.sign(texts[i], out + i * bands);
    }
    return py::make_tuple(hashes, has_tokens);
}

py::array_t<std::uint64_t> shingles(std::string_view text) {
    std::vector<std::uint64_t> found;
    {
        py::gil_scoped_release unlocked;
        std::string lowered;
        for_each_shingle(text, lowered, [&](std::uint64_t hash) { found.push_back(hash); });
        std::sort(found.begin(), found.end());
        found.erase(std::unique(found.begin(), found.end()), found.end());
    }
    return to_array(std::move(found));
}

py::array_t<std::int64_t> verified_roots(const py::array_t<std::uint64_t, py::array::c_style>& hashes,
                                         const py::array& starts_array, const py::array& shingles_array,
                                         double threshold) {
    if (hashes.ndim() != 2) throw std::invalid_argument("band hashes must have two dimensions");
    const auto documents = static_cast<std::size_t>(hashes.shape(0)), width = static_cast<std::size_t>(hashes.shape(1));
    const Values<std::int64_t> starts(starts_array, "starts");
    const Values<std::uint64_t> sets(shingles_array, "shingles");
    if (starts.size() != documents + 1 || starts[0] != 0 ||
        starts[documents] != static_cast<std::int64_t>(sets.size()) ||
        !std::is_sorted(starts.data(), starts.data() + starts.size()))
        throw std::invalid_argument("starts must rise from 0 to the number of shingles, one for each document and one");
    py::array_t<std::int64_t> roots(static_cast<py::ssize_t>(documents));
    std::int64_t* out = roots.mutable_data();
    const std::uint64_t* hash = hashes.data();
    {
        py::gil_scoped_release unlocked;
        const auto similar = [&](std::size_t a, std::size_t b) {
            return jaccard(sets.data() + starts[a], static_cast<std::size_t>(starts[a + 1] - starts[a]),
                           sets.data() + starts[b], static_cast<std::size_t>(starts[b + 1] - starts[b])) >= threshold;
        };
        Clusters clusters(documents);
        std::vector<std::uint64_t> order(documents), group;
        for (std::size_t band = 0; band < width; ++band) {
            const auto key = [&](std::size_t document) { return hash[document * width + band]; };
            std::iota(order.begin(), order.end(), 0);
            std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return key(a) < key(b); });
            for (std::size_t i = 0; i < documents;) {
                group.clear();
                for (const std::size_t first = order[i]; i < documents && key(order[i]) == key(first); ++i)
                    group.push_back(order[i]);
                join_similar(clusters, group, similar);
            }
        }
        for (std::size_t i = 0; i < documents; ++i) out[i] = static_cast<std::int64_t>(clusters.root(i));
    }
    return roots;
}

std::uint64_t join(Clusters& clusters, const py::array& a_array, const py::array& b_array) {
    const Values<std::uint64_t> a(a_array, "a"), b(b_array, "b");
    if (a.size() != b.size())
        throw std::invalid_argument(to_string(a.size()) + " and " + to_string(b.size()) + " ends of edges");
    py::gil_scoped_release unlocked;
    std::uint64_t joined = 0;
    for (std::size_t i = 0; i < a.size(); ++i) joined += clusters.join(a[i], b[i]);
    return joined;
}

py::tuple members(Clusters& clusters) {
    std::vector<std::uint64_t> numbers, roots;
    {
        py::gil_scoped_release unlocked;
        clusters.members(numbers, roots);
    }
    return py::make_tuple(to_array(std::move(numbers)), to_array(std::move(roots)));
}

// ---- equal keys --------------------------------------------------------------------------------------------------

using Column = Values<std::uint64_t>;
using Table = KeyTable<Column>;

Table make_table(const py::array& high_array, const py::array& low_array) {
    const Column high(high_array, "high"), low(low_array, "low");
    if (high.size() != low.size())
        throw std::invalid_argument(to_string(high.size()) + " and " + to_string(low.size()) + " halves of keys");
    return Table(high, low);
}

py::array_t<std::int64_t> first_of_each(const py::array& high, const py::array& low) {
    Table table = make_table(high, low);
    py::array_t<std::int64_t> first(static_cast<py::ssize_t>(table.size()));
    std::int64_t* out = first.mutable_data();
    py::gil_scoped_release unlocked;
    for (std::size_t i = 0; i < table.size(); ++i) out[i] = table.insert(i);
    return first;
}

Table table_of(const py::array& high, const py::array& low) {
    Table table = make_table(high, low);
    py::gil_scoped_release unlocked;
    for (std::size_t i = 0; i < table.size(); ++i) table.insert(i);
    return table;
}

py::array_t<std::int64_t> find_places(const Table& table, const py::array& high_array, const py::array& low_array) {
    const Column high(high_array, "high"), low(low_array, "low");
    if (high.size() != low.size())
        throw std::invalid_argument(to_string(high.size()) + " and " + to_string(low.size()) + " halves of keys");
    py::array_t<std::int64_t> places(static_cast<py::ssize_t>(low.size()));
    std::int64_t* out = places.mutable_data();
    py::gil_scoped_release unlocked;
    for (std::size_t i = 0; i < low.size(); ++i) out[i] = table.find(high[i], low[i]);
    return places;
}

// ---- exact substrings --------------------------------------------------------------------------------------------

py::array_t<std::uint64_t> anchors(const py::sequence& sequence, std::size_t window, std::size_t anchor) {
    const Texts texts(sequence);
    const WindowSize size{window, anchor};
    size.check();
    std::vector<std::uint64_t> found;
    {
        py::gil_scoped_release unlocked;
        for (std::size_t i = 0; i < texts.size(); ++i) append_anchors(texts[i], size, found);
    }
    return to_array(std::move(found));
}

py::tuple windows(const py::sequence& sequence, std::size_t window, std::size_t anchor, const py::array& wanted_array) {
    const Texts texts(sequence);
    const WindowSize size{window, anchor};
    size.check();
    const HashSet wanted(Values<std::uint64_t>(wanted_array, "wanted"));
    Places places;
    {
        py::gil_scoped_release unlocked;
        for (std::size_t i = 0; i < texts.size(); ++i) {
            std::uint64_t anchor_begin = ~std::uint64_t{0};
            bool is_wanted = false;
            for_each_window(texts[i], size, [&](const Window& one) {
                if (one.anchor_begin != anchor_begin) is_wanted = wanted.contains(one.anchor);
                anchor_begin = one.anchor_begin;
                if (is_wanted) places.add(one.key_hi, one.key_lo, i, one.begin);
            });
        }
    }
    return places.columns();
}

py::tuple cut(std::string_view text, std::size_t window, const py::array& begins_array) {
    const Values<std::uint32_t> begins(begins_array, "begins");
    if (!std::is_sorted(begins.data(), begins.data() + begins.size()))
        throw std::invalid_argument("begins must be in order");
    const Cut result = cut_windows(text, window, begins);
    return py::make_tuple(result.text, result.removed_tokens);
}

// ---- paragraphs and lines ----------------------------------------------------------------------------------------

UnitKind unit_kind(const std::string& name) {
    if (name == "line") return UnitKind::line;
    if (name == "paragraph") return UnitKind::paragraph;
    if (name == "document") return UnitKind::document;
    throw std::invalid_argument("unit '" + name + "' is none of line, paragraph, document");
}

Comparison comparison_of(const std::string& name) {
    if (name == "exact") return Comparison::exact;
    if (name == "words") return Comparison::words;
    throw std::invalid_argument("comparison '" + name + "' is neither exact nor words");
}

py::tuple units(const py::sequence& sequence, const std::string& unit, const std::string& comparison,
                std::uint64_t minimum_words) {
    const Texts texts(sequence);
    const UnitKind kind = unit_kind(unit);
    UnitHasher hasher(comparison_of(comparison));
    Places places;
    {
        py::gil_scoped_release unlocked;
        for (std::size_t i = 0; i < texts.size(); ++i) {
            std::uint64_t number = 0;
            for_each_unit(texts[i], kind, [&](Unit one) {
                const UnitKey key = hasher.hash(texts[i].substr(one.begin, one.end - one.begin));
                if (key.words >= minimum_words) places.add(key.hi, key.lo, i, number);
                ++number;
            });
        }
    }
    return places.columns();
}

std::string without_units(std::string_view text, const std::string& unit, const py::array& numbers_array) {
    const UnitKind kind = unit_kind(unit);
    const Values<std::uint32_t> numbers(numbers_array, "numbers");
    std::string result;
    std::size_t next = 0, copied = 0;
    std::uint64_t number = 0;
    for_each_unit(text, kind, [&](Unit one) {
        if (next < numbers.size() && numbers[next] == number) {
            result.append(text.substr(copied, one.begin - copied));
            copied = one.end;
            ++next;
        }
        ++number;
    });
    if (next < numbers.size())
        throw std::out_of_range("unit " + to_string(numbers[next]) + " of a text of " + to_string(number) +
                                ": numbers must rise and lie in the text");
    return result.append(text.substr(copied));
}

}  // namespace

PYBIND11_MODULE(_dedup, m) {
    m.doc() = "Deduplication: MinHash signatures, clusters, repeated windows of tokens, paragraphs and lines";
    m.attr("BANDS") = bands;
    m.attr("ROWS") = rows;
    m.attr("SHINGLE_TOKENS") = shingle_tokens;

    m.def(
        "instruction_sets",
        [] {
            std::vector<std::string> names;
            for (const InstructionSet& set : instruction_sets()) names.push_back(set.name);
            return names;
        },
        "Names of the instruction sets that signatures can be computed with here, the widest last.");
    m.def("band_hashes", &band_hashes, py::arg("texts"), py::arg("seed"), py::arg("instruction_set") = "",
          "A text's band hashes, (texts, 14) uint64, and whether it has a token, (texts,) bool: one without has no "
          "hashes, but zeros. instruction_set: one of instruction_sets(), the widest by default; all give the same.");
    m.def("shingles", &shingles, py::arg("text"),
          "The 64-bit hashes of a text's shingles, ascending, each once (uint64). See csrc/minhash.h.");
    m.def("verified_roots", &verified_roots, py::arg("band_hashes"), py::arg("starts"), py::arg("shingles"),
          py::arg("threshold"),
          "For each document the least one of its cluster, (documents,) int64: clusters are joined by pairs that share "
          "a band hash (documents, bands) and whose shingles' Jaccard similarity reaches the threshold. Document i's "
          "shingles are shingles[starts[i]:starts[i + 1]], ascending, each once.");
    m.def("first_of_each", &first_of_each, py::arg("high"), py::arg("low"),
          "For each 128-bit key, given as two halves (uint64), the index of the first one equal to it, int64.");
    py::class_<Table>(m, "KeyTable", "Finds 128-bit keys, given as two halves (uint64), in the columns of others.")
        .def(py::init(&table_of), py::arg("high"), py::arg("low"))
        .def("find", &find_places, py::arg("high"), py::arg("low"),
             "The index of each key's first equal in the table, or -1, int64.");
    m.def("lowercase", [](std::string_view text) {
        std::string lowered;
        lowercase(text, lowered);
        return lowered;
    }, py::arg("text"), "The text in lower case, code point by code point.");
    m.def("hash_bytes", &hash_bytes, py::arg("data"), py::arg("seed"), "A text's 64-bit hash.");

    py::class_<Clusters>(m, "Clusters", "Sets of the numbers below `size`, each known by its least number, the root.")
        .def(py::init<std::uint64_t>(), py::arg("size"))
        .def("join", &join, py::arg("a"), py::arg("b"),
             "Join the sets of a[i] and b[i] (uint64), for all i. Returns how many pairs were in two sets before.")
        .def("members", &members, "The numbers that are not alone in their set, in order, and their roots, uint64.");

    m.def("anchors", &anchors, py::arg("texts"), py::arg("window"), py::arg("anchor"),
          "The hashes of the anchors of all windows of the texts, one for each place where an anchor stands (uint64).");
    m.def("windows", &windows, py::arg("texts"), py::arg("window"), py::arg("anchor"), py::arg("wanted"),
          "The windows whose anchor is among `wanted` (uint64), in order: the halves of their 128-bit keys (uint64), "
          "the number of their text and of their first token in it (uint32).");
    m.def("cut", &cut, py::arg("text"), py::arg("window"), py::arg("begins"),
          "The text without the tokens of the windows that begin at these token numbers (uint32, in order), and how "
          "many tokens were removed. See csrc/windows.h for the white space around a cut.");
    m.def("units", &units, py::arg("texts"), py::arg("unit"), py::arg("comparison"), py::arg("minimum_words"),
          "The units ('line', 'paragraph' or 'document') with `minimum_words` words and more, in order: the halves of their 128-bit keys "
          "(uint64), the number of their text and their own in it (uint32). Shorter ones are numbered too. comparison: "
          "'exact' leaves out white space at the end, 'words' all but the lower-cased words.");
    m.def("without_units", &without_units, py::arg("text"), py::arg("unit"), py::arg("numbers"),
          "The text without the paragraphs or lines of these numbers (uint32, in order).");
}
