// Text of a document: its tokens.

#include <pybind11/pybind11.h>

#include <string_view>

#include "words.h"

namespace py = pybind11;

namespace {

using namespace curation;

py::list split(std::string_view text) {
    py::list tokens;
    Splitter splitter(text);
    for (Token token; splitter.next(token);)
        tokens.append(py::str(text.data() + token.begin, token.end - token.begin));
    return tokens;
}

}  // namespace

PYBIND11_MODULE(_text, m) {
    m.doc() = "Text of a document: its tokens";
    m.def("split", &split, py::arg("text"), "The tokens of a text, in order: words.py defines them.");
}
