// Tokens out of a memory-mapped .bin file, whatever their type, as int64.

#include "arrays.h"

#include <pybind11/stl.h>

#include <optional>
#include <variant>

namespace helpers {
namespace {

// The tokens as a column of their own type. `std::visit` calls a function with it.
using Tokens = std::variant<Column<std::uint16_t>, Column<std::int32_t>, Column<std::uint8_t>, Column<std::int8_t>,
                            Column<std::int16_t>, Column<std::int64_t>>;

Tokens column_of(const py::array& tokens) {
    const char* name = "tokens";
    const py::dtype dtype = tokens.dtype();
    if (dtype.equal(py::dtype::of<std::uint16_t>())) return Column<std::uint16_t>(tokens, name);
    if (dtype.equal(py::dtype::of<std::int32_t>())) return Column<std::int32_t>(tokens, name);
    if (dtype.equal(py::dtype::of<std::uint8_t>())) return Column<std::uint8_t>(tokens, name);
    if (dtype.equal(py::dtype::of<std::int8_t>())) return Column<std::int8_t>(tokens, name);
    if (dtype.equal(py::dtype::of<std::int16_t>())) return Column<std::int16_t>(tokens, name);
    if (dtype.equal(py::dtype::of<std::int64_t>())) return Column<std::int64_t>(tokens, name);
    throw std::invalid_argument("tokens of type " + std::string(py::str(dtype)) + " are not token ids");
}

struct Sequences {
    Column<std::int32_t> lengths;
    Column<std::int64_t> pointers;

    Sequences(const py::array& lengths_array, const py::array& pointers_array)
        : lengths(lengths_array, "lengths"), pointers(pointers_array, "pointers") {}

    std::int64_t size() const { return std::min(lengths.size(), pointers.size()); }
};

// Copies `count` tokens, beginning `offset` tokens into the sequence at `place`, and on through the places before
// `last`. `sequence_at` tells which sequence is at a place. Sequences that lie one behind the other in the file, as
// they mostly do, are copied at once.
template <typename Token, typename SequenceAt>
void gather(const Column<Token>& tokens, const Sequences& sequences, SequenceAt sequence_at, std::int64_t place,
            std::int64_t last, std::int64_t offset, std::int64_t count, std::int64_t* out) {
    constexpr std::int64_t token_bytes = sizeof(Token);
    auto checked = [&](std::int64_t at) {
        if (at >= last)
            throw std::out_of_range(to_string(count) + " tokens lie past the last sequence, " + to_string(last - 1));
        const std::int64_t sequence = sequence_at(at);
        if (sequence < 0 || sequence >= sequences.size())
            throw std::out_of_range("sequence " + to_string(sequence) + " of " + to_string(sequences.size()));
        return sequence;
    };
    for (; count > 0; ++place, offset = 0) {
        std::int64_t sequence = checked(place);
        const std::int64_t length = sequences.lengths[sequence];
        if (offset > length)
            throw std::out_of_range("offset " + to_string(offset) + " in sequence " + to_string(sequence) + " of " +
                                    to_string(length) + " tokens");
        const std::int64_t begin = sequences.pointers[sequence] / token_bytes + offset;
        std::int64_t run = length - offset;
        while (run < count && place + 1 < last) {
            sequence = checked(place + 1);
            if (sequences.pointers[sequence] != (begin + run) * token_bytes) break;
            run += std::max(0, sequences.lengths[sequence]);
            ++place;
        }
        const std::int64_t taken = std::min(count, run);
        if (begin < 0 || begin > tokens.size() - taken)
            throw std::out_of_range("sequence " + to_string(sequence) + " ends past the .bin file");
        tokens.copy(begin, taken, out);
        out += taken;
        count -= taken;
    }
}

py::array_t<std::int64_t> gather_tokens(const py::array& token_array, const py::array& lengths_array,
                                        const py::array& pointers_array, std::int64_t sequence, std::int64_t last,
                                        std::int64_t offset, std::int64_t count) {
    const Sequences sequences(lengths_array, pointers_array);
    check_range(sequence, last, sequences.size());
    if (offset < 0 || count < 0) throw std::out_of_range("offset and count must not be negative");
    py::array_t<std::int64_t> result(count);
    std::int64_t* out = result.mutable_data();
    const Tokens column = column_of(token_array);
    {
        py::gil_scoped_release unlocked;
        std::visit(
            [&](const auto& tokens) {
                gather(tokens, sequences, [](std::int64_t place) { return place; }, sequence, last, offset, count, out);
            },
            column);
    }
    return result;
}

// Reads samples by their number in a sample index. References to the arrays and what was checked of them are kept.
class SampleReader {
public:
    SampleReader(py::array tokens, py::array lengths, py::array pointers, py::array_t<std::int64_t> index,
                 std::int64_t last, std::int64_t sequence_length, std::optional<py::array> order)
        : token_array_(std::move(tokens)), lengths_array_(std::move(lengths)), pointers_array_(std::move(pointers)),
          index_array_(std::move(index)), order_array_(std::move(order)), tokens_(column_of(token_array_)),
          sequences_(lengths_array_, pointers_array_), index_(index_array_.unchecked<2>()), last_(last),
          width_(sequence_length + 1) {
        if (order_array_) order_.emplace(*order_array_, "order");
        check_range(0, last, order_ ? order_->size() : sequences_.size());
        if (sequence_length < 1 || index_.shape(1) != 2)
            throw std::invalid_argument("sequence_length must be positive and the index of two columns");
    }

    // int64 [n, sequence_length + 1]
    py::array_t<std::int64_t> read(const py::array_t<std::int64_t, py::array::c_style>& samples) const {
        const std::int64_t rows = samples.size();
        const std::int64_t* numbers = samples.data();
        py::array_t<std::int64_t> result({rows, width_});
        std::int64_t* out = result.mutable_data();
        {
            py::gil_scoped_release unlocked;
            std::visit([&](const auto& tokens) { read_all(tokens, numbers, rows, out); }, tokens_);
        }
        return result;
    }

private:
    template <typename Token>
    void read_all(const Column<Token>& tokens, const std::int64_t* numbers, std::int64_t rows,
                  std::int64_t* out) const {
        for (std::int64_t row = 0; row < rows; ++row, out += width_) {
            if (order_)
                read_one(tokens, [this](std::int64_t place) { return (*order_)[place]; }, numbers[row], out);
            else
                read_one(tokens, [](std::int64_t place) { return place; }, numbers[row], out);
        }
    }

    template <typename Token, typename SequenceAt>
    void read_one(const Column<Token>& tokens, SequenceAt sequence_at, std::int64_t number, std::int64_t* out) const {
        if (number < 0 || number >= index_.shape(0))
            throw std::out_of_range("sample " + to_string(number) + " of " + to_string(index_.shape(0)));
        const std::int64_t place = index_(number, 0), offset = index_(number, 1);
        if (place < 0 || offset < 0)
            throw std::out_of_range("sample " + to_string(number) + " starts " + to_string(offset) +
                                    " tokens into place " + to_string(place));
        gather(tokens, sequences_, sequence_at, place, last_, offset, width_, out);
    }

    py::array token_array_, lengths_array_, pointers_array_;
    py::array_t<std::int64_t> index_array_;
    std::optional<py::array> order_array_;
    Tokens tokens_;
    Sequences sequences_;
    std::optional<Column<std::int32_t>> order_;
    py::detail::unchecked_reference<std::int64_t, 2> index_;
    std::int64_t last_, width_;
};

py::tuple token_range(const py::array& token_array) {
    if (token_array.size() == 0) throw std::invalid_argument("there are no tokens");
    std::int64_t lowest = 0, highest = 0;
    const Tokens column = column_of(token_array);
    auto find = [&](const auto& tokens) {
        const int parts = parts_of(tokens.size());
        std::vector<std::int64_t> lows(static_cast<std::size_t>(parts)), highs(static_cast<std::size_t>(parts));
        in_parallel(0, tokens.size(), parts, [&](int p, std::int64_t begin, std::int64_t end) {
            auto low = tokens[begin], high = low;  // of the tokens' own type: many fit into one vector instruction
            for (std::int64_t i = begin; i < end; ++i) {
                low = std::min(low, tokens[i]);
                high = std::max(high, tokens[i]);
            }
            lows[static_cast<std::size_t>(p)] = static_cast<std::int64_t>(low);
            highs[static_cast<std::size_t>(p)] = static_cast<std::int64_t>(high);
        });
        lowest = *std::min_element(lows.begin(), lows.end());
        highest = *std::max_element(highs.begin(), highs.end());
    };
    {
        py::gil_scoped_release unlocked;
        std::visit(find, column);
    }
    return py::make_tuple(lowest, highest);
}

}  // namespace

void bind_tokens(py::module_& module) {
    module.def("gather_tokens", &gather_tokens, py::arg("tokens"), py::arg("lengths"), py::arg("pointers"),
               py::arg("sequence"), py::arg("last"), py::arg("offset"), py::arg("count"),
               "int64 [count]: tokens from `offset` in `sequence` on, through the sequences before `last`.\n"
               "Raises IndexError where there are fewer.");
    module.def("token_range", &token_range, py::arg("tokens"),
               "(lowest, highest) token id. Raises ValueError on none.");
    py::class_<SampleReader>(module, "SampleReader",
                             "Reads samples by their number in `index`, int64 [N, 2]: the place in which each starts, and\n"
                             "how many tokens into it. At a place is the sequence of that number or, with `order`, int32,\n"
                             "sequence order[place]. Tokens come from the places before `last`.")
        .def(py::init<py::array, py::array, py::array, py::array_t<std::int64_t>, std::int64_t, std::int64_t,
                      std::optional<py::array>>(),
             py::arg("tokens"), py::arg("lengths"), py::arg("pointers"), py::arg("index"), py::arg("last"),
             py::arg("sequence_length"), py::arg("order") = py::none())
        .def("read", &SampleReader::read, py::arg("samples"),
             "int64 [n, sequence_length + 1]: the samples of these numbers. Raises IndexError where tokens are missing.");
}

}  // namespace helpers
