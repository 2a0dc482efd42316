// The index of a data set: is it sound, how many tokens does it hold, where does each sample begin.

#include "arrays.h"

namespace helpers {
namespace {

// Returns where the last of these sequences ends in the .bin file, in bytes. `first` numbers them in messages.
std::int64_t check_sequences(const py::array& lengths_array, const py::array& pointers_array, std::int64_t first,
                             std::int64_t token_bytes, std::int64_t bin_bytes) {
    const Column<std::int32_t> lengths(lengths_array, "lengths");
    const Column<std::int64_t> pointers(pointers_array, "pointers");
    if (pointers.size() != lengths.size())
        throw std::invalid_argument(to_string(lengths.size()) + " lengths, " + to_string(pointers.size()) + " pointers");
    py::gil_scoped_release unlocked;
    const int parts = parts_of(lengths.size());
    std::vector<std::int64_t> ends(static_cast<std::size_t>(parts), 0);
    in_parallel(0, lengths.size(), parts, [&](int p, std::int64_t begin, std::int64_t stop) {
        std::int64_t end = 0;
        for (std::int64_t i = begin; i < stop; ++i) {
            const std::int64_t length = lengths[i], pointer = pointers[i];
            if (length < 0)
                throw std::invalid_argument("sequence " + to_string(first + i) + " has length " + to_string(length) +
                                            "; one of more than 2147483647 tokens does not fit the format");
            // A length below 2^31 times 8 bytes does not overflow, and token_bytes is a power of two: no division.
            const bool aligned = (pointer & (token_bytes - 1)) == 0;
            if (pointer < 0 || !aligned || pointer > bin_bytes || length * token_bytes > bin_bytes - pointer)
                throw std::invalid_argument("sequence " + to_string(first + i) + " of " + to_string(length) +
                                            " tokens at byte " + to_string(pointer) + " does not lie in the " +
                                            to_string(bin_bytes) + " bytes of the .bin file");
            end = std::max(end, pointer + length * token_bytes);
        }
        ends[static_cast<std::size_t>(p)] = end;
    });
    return *std::max_element(ends.begin(), ends.end());
}

// Returns the last of these bounds. `first` numbers them in messages, `previous` is the one before them.
std::int64_t check_documents(const py::array& documents_array, std::int64_t first, std::int64_t previous,
                             std::int64_t sequences) {
    const Column<std::int64_t> documents(documents_array, "documents");
    py::gil_scoped_release unlocked;
    in_parallel(0, documents.size(), parts_of(documents.size()), [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            const std::int64_t lowest = i == 0 ? previous : documents[i - 1];
            const std::int64_t highest = first + i == 0 ? 0 : sequences;
            if (documents[i] < lowest || documents[i] > highest)
                throw std::invalid_argument("document " + to_string(first + i) + " begins at sequence " +
                                            to_string(documents[i]) + ", not in [" + to_string(lowest) + ", " +
                                            to_string(highest) + "]");
        }
    });
    return documents.size() > 0 ? documents[documents.size() - 1] : previous;
}

// The tokens of each part of sequences [first, last).
std::vector<std::int64_t> tokens_of_parts(const Column<std::int32_t>& lengths, std::int64_t first, std::int64_t last,
                                          int parts) {
    std::vector<std::int64_t> tokens(static_cast<std::size_t>(parts), 0);
    in_parallel(first, last, parts, [&](int p, std::int64_t begin, std::int64_t end) {
        std::int64_t sum = 0;
        std::int32_t lowest = 0;
        for (std::int64_t i = begin; i < end; ++i) {
            sum += lengths[i];
            lowest = std::min(lowest, lengths[i]);
        }
        if (lowest < 0) throw std::invalid_argument("a sequence has length " + to_string(lowest));
        tokens[static_cast<std::size_t>(p)] = sum;
    });
    return tokens;
}

std::int64_t count_tokens(const py::array& lengths_array, std::int64_t first, std::int64_t last) {
    const Column<std::int32_t> lengths(lengths_array, "lengths");
    check_range(first, last, lengths.size());
    py::gil_scoped_release unlocked;
    std::int64_t total = 0;
    for (std::int64_t tokens : tokens_of_parts(lengths, first, last, parts_of(last - first))) total += tokens;
    return total;
}

py::array_t<std::int64_t> build_sample_index(const py::array& lengths_array, std::int64_t first, std::int64_t last,
                                             std::int64_t sequence_length) {
    const Column<std::int32_t> lengths(lengths_array, "lengths");
    check_range(first, last, lengths.size());
    if (sequence_length < 1) throw std::invalid_argument("sequence_length is " + to_string(sequence_length));
    const int parts = parts_of(last - first);
    std::vector<std::int64_t> before(static_cast<std::size_t>(parts) + 1, 0);  // tokens before each part, and in all
    {
        py::gil_scoped_release unlocked;
        const std::vector<std::int64_t> tokens = tokens_of_parts(lengths, first, last, parts);
        for (std::size_t p = 0; p < tokens.size(); ++p) before[p + 1] = before[p] + tokens[p];
    }
    const std::int64_t total = before.back(), samples = total > 0 ? (total - 1) / sequence_length : 0;
    py::array_t<std::int64_t> result({samples, std::int64_t{2}});
    std::int64_t* out = result.mutable_data();
    {
        py::gil_scoped_release unlocked;
        in_parallel(first, last, parts, [&](int p, std::int64_t begin, std::int64_t) {
            const std::int64_t tokens = before[static_cast<std::size_t>(p)];
            const std::int64_t end = before[static_cast<std::size_t>(p) + 1];
            std::int64_t i = (tokens + sequence_length - 1) / sequence_length;  // the first sample that starts here
            std::int64_t sequence = begin, offset = i * sequence_length - tokens;
            for (; i < samples && i * sequence_length < end; ++i, offset += sequence_length) {
                while (offset >= lengths[sequence]) offset -= lengths[sequence++];
                out[2 * i] = sequence;
                out[2 * i + 1] = offset;
            }
        });
    }
    return result;
}

}  // namespace

void bind_index(py::module_& module) {
    module.def("check_sequences", &check_sequences, py::arg("lengths"), py::arg("pointers"), py::arg("first"),
               py::arg("token_bytes"), py::arg("bin_bytes"),
               "The byte at which the last of these sequences ends. Raises ValueError, naming the first that does not\n"
               "lie in a .bin of `bin_bytes`. lengths int32 [S] in tokens, pointers int64 [S] in bytes.");
    module.def("check_documents", &check_documents, py::arg("documents"), py::arg("first"), py::arg("previous"),
               py::arg("sequences"),
               "The last of these bounds, int64. Raises ValueError unless they rise from `previous` on, stay at or below\n"
               "`sequences` and, where they are the first, begin with 0.");
    module.def("count_tokens", &count_tokens, py::arg("lengths"), py::arg("first"), py::arg("last"),
               "The sum of lengths[first:last], int32.");
    module.def("build_sample_index", &build_sample_index, py::arg("lengths"), py::arg("first"), py::arg("last"),
               py::arg("sequence_length"),
               "int64 [N, 2]: the sequence in which each sample starts, and how many tokens into it.\n"
               "Sample i is tokens i * sequence_length and the sequence_length after it of sequences [first, last) in\n"
               "file order; the up to sequence_length - 1 tokens after the last whole sample are dropped.");
}

}  // namespace helpers
