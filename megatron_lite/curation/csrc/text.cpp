// What the rules of curation ask of a text, one pass a rule; megatron_lite/curation/rules makes verdicts of it.
// Texts come as Python strings, and the GIL is released while one is read.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "c4.h"
#include "code.h"
#include "fineweb.h"
#include "quality.h"
#include "refinedweb.h"
#include "repetition.h"
#include "words.h"

namespace py = pybind11;

namespace {

using namespace curation;

using Strings = std::vector<std::string>;

// Valid as long as the string lives. Raises UnicodeEncodeError for half a surrogate pair.
std::string_view utf8(const py::str& text) {
    Py_ssize_t size = 0;
    const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
    if (data == nullptr) throw py::error_already_set();
    return {data, static_cast<std::size_t>(size)};
}

// measure(text, ...), without the GIL.
template <typename Measure, typename... Arguments>
auto run(const py::str& text, Measure measure, const Arguments&... arguments) {
    const std::string_view view = utf8(text);
    const py::gil_scoped_release unlocked;
    return measure(view, arguments...);
}

py::list split(const py::str& text) {
    const std::string_view view = utf8(text);
    py::list tokens;
    Splitter splitter(view);
    for (Token token; splitter.next(token);) tokens.append(py::str(view.data() + token.begin, token.end - token.begin));
    return tokens;
}

std::size_t words(const py::str& text) { return run(text, count_words); }

Quality quality(const py::str& text, const Strings& stop_words) {
    if (stop_words.size() > most_stop_words)
        throw std::invalid_argument(std::to_string(stop_words.size()) + " stop words; at most " +
                                    std::to_string(most_stop_words) + " are counted");
    return run(text, measure_quality, stop_words);
}

C4Lines c4_lines(const py::str& text, const C4Rules& rules) {
    if (rules.drops_document.size() != rules.phrases.size())
        throw std::invalid_argument("drops_document must say yes or no for each phrase");
    return run(text, filter_c4_lines, rules);
}

Repetition repetition(const py::str& text) { return run(text, measure_repetition); }

LineShapes line_shapes(const py::str& text, std::size_t short_line_characters) {
    return run(text, measure_line_shapes, short_line_characters);
}

RefinedWebLines refinedweb_lines(const py::str& text, const RefinedWebRules& rules) {
    return run(text, filter_refinedweb_lines, rules);
}

PhraseLines phrase_lines(const py::str& text, const Strings& phrases, std::size_t max_words) {
    return run(text, drop_lines_with, phrases, max_words);
}

CodeShape code_shape(const py::str& text) { return run(text, measure_code); }

void bind_gopher(py::module_& m) {
    py::class_<Quality>(m, "Quality")
        .def_readonly("tokens", &Quality::tokens)
        .def_readonly("words", &Quality::words)
        .def_readonly("word_characters", &Quality::word_characters)
        .def_readonly("alphabetic_words", &Quality::alphabetic_words)
        .def_readonly("stop_words", &Quality::stop_words)
        .def_readonly("hashes", &Quality::hashes)
        .def_readonly("ellipses", &Quality::ellipses)
        .def_readonly("lines", &Quality::lines)
        .def_readonly("bullet_lines", &Quality::bullet_lines)
        .def_readonly("ellipsis_lines", &Quality::ellipsis_lines);
    m.attr("most_stop_words") = most_stop_words;
    m.def("quality", &quality, py::arg("text"), py::arg("stop_words"), "quality.h says what each count is.");
    py::class_<Duplicates>(m, "Duplicates")
        .def_readonly("parts", &Duplicates::parts)
        .def_readonly("duplicates", &Duplicates::duplicates)
        .def_readonly("duplicate_characters", &Duplicates::duplicate_characters);
    py::class_<Repetition>(m, "Repetition")
        .def_readonly("characters", &Repetition::characters)
        .def_readonly("paragraphs", &Repetition::paragraphs)
        .def_readonly("lines", &Repetition::lines)
        .def_readonly("top", &Repetition::top, "Characters of the top 2-, 3- and 4-gram.")
        .def_readonly("duplicate", &Repetition::duplicate, "Characters of duplicate 5- to 10-grams.");
    m.def("repetition", &repetition, py::arg("text"), "repetition.h says what each count is.");
}

void bind_lines(py::module_& m) {
    py::class_<LineShapes>(m, "LineShapes")
        .def_readonly("characters", &LineShapes::characters)
        .def_readonly("newlines", &LineShapes::newlines)
        .def_readonly("tokens", &LineShapes::tokens)
        .def_readonly("lines", &LineShapes::lines)
        .def_readonly("punctuated_lines", &LineShapes::punctuated_lines)
        .def_readonly("short_lines", &LineShapes::short_lines)
        .def_readonly("duplicate_characters", &LineShapes::duplicate_characters);
    m.def("line_shapes", &line_shapes, py::arg("text"), py::arg("short_line_characters"),
          "fineweb.h says what each count is.");
    py::class_<C4Rules>(m, "C4Rules")
        .def(py::init<std::string, std::size_t, std::size_t, bool, Strings, std::vector<bool>>(), py::kw_only(),
             py::arg("end_marks"), py::arg("min_words"), py::arg("max_word_characters"), py::arg("remove_citations"),
             py::arg("phrases"), py::arg("drops_document"));
    py::class_<C4Lines>(m, "C4Lines")
        .def_readonly("text", &C4Lines::text)
        .def_readonly("kept", &C4Lines::kept)
        .def_readonly("long_word", &C4Lines::long_word)
        .def_readonly("no_end_mark", &C4Lines::no_end_mark)
        .def_readonly("few_words", &C4Lines::few_words)
        .def_readonly("phrase", &C4Lines::phrase)
        .def_readonly("document_phrase", &C4Lines::document_phrase);
    m.def("c4_lines", &c4_lines, py::arg("text"), py::arg("rules"), "c4.h says what is kept and counted.");
    py::class_<RefinedWebRules>(m, "RefinedWebRules")
        .def(py::init<double, std::size_t, Strings, Strings, Strings, Strings>(), py::kw_only(),
             py::arg("max_uppercase"), py::arg("short_words"), py::arg("counters"), py::arg("starts"), py::arg("ends"),
             py::arg("anywhere"));
    py::class_<RefinedWebLines>(m, "RefinedWebLines")
        .def_readonly("text", &RefinedWebLines::text)
        .def_readonly("words", &RefinedWebLines::words)
        .def_readonly("flagged_words", &RefinedWebLines::flagged_words)
        .def_readonly("uppercase", &RefinedWebLines::uppercase)
        .def_readonly("numeric", &RefinedWebLines::numeric)
        .def_readonly("counter", &RefinedWebLines::counter)
        .def_readonly("one_word", &RefinedWebLines::one_word)
        .def_readonly("edited", &RefinedWebLines::edited);
    m.def("refinedweb_lines", &refinedweb_lines, py::arg("text"), py::arg("rules"),
          "refinedweb.h says what is kept and counted.");
    py::class_<PhraseLines>(m, "PhraseLines")
        .def_readonly("text", &PhraseLines::text)
        .def_readonly("dropped", &PhraseLines::dropped);
    m.def("drop_lines_with", &phrase_lines, py::arg("text"), py::arg("phrases"), py::arg("max_words"),
          "Drops the lines of at most `max_words` words that hold one of the phrases, given in lower case.");
}

void bind_code(py::module_& m) {
    py::class_<CodeShape>(m, "CodeShape")
        .def_readonly("characters", &CodeShape::characters)
        .def_readonly("letters", &CodeShape::letters)
        .def_readonly("letters_and_digits", &CodeShape::letters_and_digits)
        .def_readonly("lines", &CodeShape::lines)
        .def_readonly("longest_line", &CodeShape::longest_line)
        .def_readonly("line_characters", &CodeShape::line_characters)
        .def_readonly("encoded_characters", &CodeShape::encoded_characters)
        .def_readonly("longest_encoded", &CodeShape::longest_encoded)
        .def_readonly("hexadecimal_characters", &CodeShape::hexadecimal_characters);
    m.def("code_shape", &code_shape, py::arg("text"), "code.h says what each count is.");
}

}  // namespace

PYBIND11_MODULE(_text, m) {
    m.doc() = "What the rules of curation ask of a text.";
    m.def("split", &split, py::arg("text"), "The tokens of a text, in order: words.py defines them.");
    m.def("count_words", &words, py::arg("text"), "How many of the text's tokens are words.");
    bind_gopher(m);
    bind_lines(m);
    bind_code(m);
}
