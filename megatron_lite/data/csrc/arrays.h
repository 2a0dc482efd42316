// What the files of this folder share: numpy arrays as columns of one type, and a range divided over threads.

#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

namespace helpers {

namespace py = pybind11;
using std::to_string;

// A one-dimensional numpy array read element by element. The arrays of an .idx file start at byte 34, unaligned,
// hence the memcpy (which compiles to one load).
template <typename T>
class Column {
public:
    Column(const py::array& array, const char* name) {
        const bool contiguous = array.ndim() == 1 && (array.size() < 2 || array.strides(0) == sizeof(T));
        if (!array.dtype().equal(py::dtype::of<T>()) || !contiguous)
            throw std::invalid_argument(std::string(name) + " must be a contiguous one-dimensional array of " +
                                        std::string(py::str(py::dtype::of<T>())));
        data_ = static_cast<const char*>(array.data());
        size_ = array.size();
    }

    std::int64_t size() const { return size_; }

    T operator[](std::int64_t i) const {
        T value;
        std::memcpy(&value, data_ + i * static_cast<std::int64_t>(sizeof(T)), sizeof(T));
        return value;
    }

    void prefetch(std::int64_t i) const { __builtin_prefetch(data_ + i * static_cast<std::int64_t>(sizeof(T))); }

    void copy(std::int64_t begin, std::int64_t count, std::int64_t* out) const {
        for (std::int64_t i = 0; i < count; ++i) out[i] = static_cast<std::int64_t>((*this)[begin + i]);
    }

private:
    const char* data_;
    std::int64_t size_;
};

inline void check_range(std::int64_t first, std::int64_t last, std::int64_t size) {
    if (first < 0 || last < first || last > size)
        throw std::out_of_range("sequences [" + to_string(first) + ", " + to_string(last) + ") of " + to_string(size));
}

// Part p of `parts` equal ones of [first, last) begins here.
inline std::int64_t part_begin(std::int64_t first, std::int64_t last, int p, int parts) {
    return first + (last - first) / parts * p + std::min<std::int64_t>(p, (last - first) % parts);
}

constexpr std::int64_t WORTH_A_THREAD = 1 << 20;  // elements; below, starting one costs more than it brings

// In how many parts work on `elements` is divided.
inline int parts_of(std::int64_t elements) {
    const std::int64_t most = std::min<std::int64_t>(8, std::max(1u, std::thread::hardware_concurrency()));
    return static_cast<int>(std::clamp<std::int64_t>(elements / WORTH_A_THREAD, 1, most));
}

// Calls work(p, begin, end) for every part, each on a thread of its own. Of several exceptions the first part's is
// thrown.
template <typename Work>
void in_parallel(std::int64_t first, std::int64_t last, int parts, Work work) {
    std::vector<std::exception_ptr> failures(static_cast<std::size_t>(parts));
    auto run = [&](int p) {
        try {
            work(p, part_begin(first, last, p, parts), part_begin(first, last, p + 1, parts));
        } catch (...) {
            failures[static_cast<std::size_t>(p)] = std::current_exception();
        }
    };
    std::vector<std::thread> threads;
    for (int p = 1; p < parts; ++p) threads.emplace_back(run, p);
    run(0);
    for (std::thread& thread : threads) thread.join();
    for (const std::exception_ptr& failure : failures)
        if (failure) std::rethrow_exception(failure);
}

// The samples [begin, end) of a blend: each one's data set and which of its samples it is.
class BlendColumns {
public:
    BlendColumns(std::int64_t begin, std::int64_t end) {
        if (begin < 0 || end < begin)
            throw std::out_of_range("samples [" + to_string(begin) + ", " + to_string(end) + ")");
        datasets = py::array_t<std::int32_t>(end - begin);
        samples = py::array_t<std::int64_t>(end - begin);
    }

    // next() gives (data set, sample of it), one after another; runs without the interpreter's lock.
    template <typename Next>
    void fill(Next next) {
        std::int32_t* dataset_out = datasets.mutable_data();
        std::int64_t* sample_out = samples.mutable_data();
        const std::int64_t count = samples.size();
        py::gil_scoped_release unlocked;
        for (std::int64_t i = 0; i < count; ++i) std::tie(dataset_out[i], sample_out[i]) = next();
    }

    py::array_t<std::int32_t> datasets;
    py::array_t<std::int64_t> samples;
};

void bind_index(py::module_& module);
void bind_tokens(py::module_& module);
void bind_order(py::module_& module);
void bind_megatron(py::module_& module);

}  // namespace helpers
