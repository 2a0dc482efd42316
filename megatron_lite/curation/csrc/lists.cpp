// What the rules that look for listed things compute over text, for ../rules: bindings of the headers beside this file.

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

#include "blocklist.h"
#include "fasttext.h"
#include "linear.h"
#include "ngrams.h"
#include "phrases.h"
#include "pii.h"

namespace py = pybind11;

namespace {

using namespace curation;

// Valid as long as the string lives. Raises UnicodeEncodeError for half a surrogate pair.
std::string_view utf8(const py::str& text) {
    Py_ssize_t size = 0;
    const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
    if (data == nullptr) throw py::error_already_set();
    return {data, static_cast<std::size_t>(size)};
}

template <typename T>
py::array_t<T> array_of(const std::vector<T>& values) {
    return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

template <typename T>
const T* column(const py::array& array, const char* name) {
    const bool contiguous = array.ndim() == 1 && (array.size() < 2 || array.strides(0) == sizeof(T));
    if (!array.dtype().equal(py::dtype::of<T>()) || !contiguous)
        throw std::invalid_argument(std::string(name) + " must be a contiguous one-dimensional array of " +
                                    std::string(py::str(py::dtype::of<T>())));
    return static_cast<const T*>(array.data());
}

// Keeps the arrays alive.
class SharedNGrams {
public:
    SharedNGrams(const py::array& hashes, const py::array& items, const py::array& filter,
                 std::size_t start_words, std::vector<std::size_t> lengths)
        : owners_{hashes, items, filter},
          table_{column<std::uint64_t>(hashes, "hashes"),
                 column<std::uint32_t>(items, "items"),
                 static_cast<std::size_t>(hashes.size()),
                 column<std::uint64_t>(filter, "filter"),
                 static_cast<std::size_t>(filter.size()),
                 start_words,
                 std::move(lengths)} {
        if (items.size() != hashes.size()) throw std::invalid_argument("hashes and items must be as many");
        if (table_.filter_words == 0 || table_.filter_words & (table_.filter_words - 1))
            throw std::invalid_argument("the filter must have a power of two of words");
        if (start_words == 0 || !std::is_sorted(table_.lengths.begin(), table_.lengths.end()) ||
            (!table_.lengths.empty() && table_.lengths.front() < start_words))
            throw std::invalid_argument("lengths must ascend from start_words, which must be 1 or more");
    }

    SharedPassages find(const py::str& text) const {
        const std::string_view view = utf8(text);
        const py::gil_scoped_release unlocked;
        return find_shared(view, table_);
    }

private:
    std::vector<py::array> owners_;
    NGramTable table_;
};

// The hashes of a text's runs of `length` words, or of all its words where it has fewer, and the number of its words.
std::pair<py::array_t<std::uint64_t>, std::size_t> ngrams(const py::str& text, std::size_t length) {
    if (length == 0) throw std::invalid_argument("runs of no words");
    const std::vector<std::uint64_t> words = word_hashes(utf8(text));
    std::vector<std::uint64_t> hashes;
    if (!words.empty() && words.size() <= length) hashes.push_back(ngram_hash(words.data(), words.size()));
    if (words.size() > length)
        for (std::size_t i = 0; i + length <= words.size(); ++i) hashes.push_back(ngram_hash(&words[i], length));
    return {array_of(hashes), words.size()};
}

// The StartFilter hashes of a text's runs of `length` words.
py::array_t<std::uint64_t> ngram_starts(const py::str& text, std::size_t length) {
    const std::vector<std::uint64_t> words = word_hashes(utf8(text));
    std::vector<std::uint64_t> starts;
    if (length > 0)
        for (std::size_t i = 0; i + length <= words.size(); ++i)
            starts.push_back(StartFilter::hash(&words[i], length));
    return array_of(starts);
}

// 16 bits or more a hash: at most one run in 16 passes that begins like none of the table's.
py::array_t<std::uint64_t> start_filter(const py::array& starts) {
    const auto* hashes = column<std::uint64_t>(starts, "starts");
    const auto count = static_cast<std::size_t>(starts.size());
    std::size_t words = 1;
    while (words * 64 < count * 16) words *= 2;
    std::vector<std::uint64_t> bits(words, 0);
    for (std::size_t i = 0; i < count; ++i) StartFilter::insert(bits, hashes[i]);
    return array_of(bits);
}

void bind_ngrams(py::module_& m) {
    py::class_<SharedPassage>(m, "SharedPassage")
        .def_readonly("begin", &SharedPassage::begin)
        .def_readonly("end", &SharedPassage::end)
        .def_readonly("words", &SharedPassage::words)
        .def_readonly("item", &SharedPassage::item);
    py::class_<SharedPassages>(m, "SharedPassages")
        .def_readonly("words", &SharedPassages::words)
        .def_readonly("passages", &SharedPassages::passages);
    py::class_<SharedNGrams>(m, "SharedNGrams")
        .def(py::init<const py::array&, const py::array&, const py::array&, std::size_t, std::vector<std::size_t>>(),
             py::arg("hashes"), py::arg("items"), py::arg("filter"), py::arg("start_words"), py::arg("lengths"))
        .def("find", &SharedNGrams::find);
    m.def("ngrams", &ngrams, py::arg("text"), py::arg("length"));
    m.def("ngram_starts", &ngram_starts, py::arg("text"), py::arg("length"));
    m.def("start_filter", &start_filter, py::arg("starts"));
}

void bind_pii(py::module_& m) {
    m.attr("PII_PLACES") = py::make_tuple("email", "ipv4", "ipv6", "number", "iban", "assignment", "key");
    py::class_<PiiScanner>(m, "PiiScanner")
        .def(py::init([](std::vector<std::string> prefixes) {
                 for (const std::string& prefix : prefixes)
                     if (prefix.empty()) throw std::invalid_argument("an empty prefix begins everywhere");
                 return PiiScanner(std::move(prefixes));
             }),
             py::arg("prefixes"))
        .def("find", [](const PiiScanner& scanner, const py::str& text) {
            const std::string_view view = utf8(text);
            std::vector<PiiPlace> places;
            {
                const py::gil_scoped_release unlocked;
                places = scanner.find(view);
            }
            std::vector<std::pair<int, std::size_t>> found;
            for (const PiiPlace& place : places) found.emplace_back(static_cast<int>(place.kind), place.at);
            return found;
        });
}

}  // namespace

PYBIND11_MODULE(_lists, m) {
    m.doc() = "Listed things in text: personal data, phrases, weighted words, runs of words, addresses.";
    bind_pii(m);
    bind_ngrams(m);
    py::class_<PhrasesFound>(m, "PhrasesFound")
        .def_readonly("count", &PhrasesFound::count)
        .def_readonly("first", &PhrasesFound::first);
    py::class_<PhraseMatcher>(m, "PhraseMatcher")
        .def(py::init<const std::vector<std::string>&, bool>(), py::arg("phrases"), py::arg("whole_words"))
        .def("find", [](const PhraseMatcher& matcher, const py::str& text) {
            const std::string_view view = utf8(text);
            const py::gil_scoped_release unlocked;
            return matcher.find(view);
        });
    py::class_<Passages>(m, "Passages")
        .def_readonly("words", &Passages::words)
        .def_readonly("flagged_words", &Passages::flagged_words)
        .def_readonly("highest", &Passages::highest);
    py::class_<LinearClassifier>(m, "LinearClassifier")
        .def(py::init<const std::vector<std::string>&, std::vector<float>, std::vector<float>, double>(),
             py::arg("words"), py::arg("weights"), py::arg("idfs"), py::arg("bias"))
        .def(
            "judge",
            [](const LinearClassifier& classifier, const py::str& text, std::size_t passage_words, double threshold) {
                const std::string_view view = utf8(text);
                const py::gil_scoped_release unlocked;
                return classifier.judge(view, passage_words, threshold);
            },
            py::arg("text"), py::arg("passage_words"), py::arg("threshold"));
    py::class_<FastText>(m, "FastText")
        .def(py::init<const std::string&>(), py::arg("path"))
        .def_property_readonly("labels", &FastText::labels)
        // Under the GIL, since what is remembered of words changes.
        .def("predict", [](FastText& model, const py::str& text) { return array_of(model.predict(utf8(text))); },
             py::arg("text"));
    m.def("address_hash", [](const py::str& address) { return address_hash(utf8(address)); }, py::arg("address"));
    m.def("listed_hashes", [](const py::bytes& list) { return array_of(listed_hashes(std::string_view(list))); },
          py::arg("list"));
}
