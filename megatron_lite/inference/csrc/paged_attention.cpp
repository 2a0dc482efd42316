// Keys and values in blocks: new ones are stored, and one new token a row attends over blocks that are read where they
// lie. Nothing is copied or padded.
//
// Each (row, key-value head) is by itself, always in the same order of sums: what else is in a step changes no bit.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace py = pybind11;
using std::int64_t;

// One binary serves every processor: the widest of these that it has is taken when the module is loaded.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif
#define INLINE inline __attribute__((always_inline))

namespace {

// R query heads a key-value head, of which there are G; D elements a head; blocks of `size` positions.
struct Shape {
    int64_t groups, queries, head, size;

    int64_t position() const { return groups * 2 * head; }  // elements of all keys and values of a position
};

// exp(x) for x <= 0 as 2^n exp(r), |r| <= ln 2 / 2: Cephes' polynomial, in a form that a loop over it is vectorized.
INLINE float exponential(float x) {
    x = std::max(x, -87.0f);
    const float n = std::nearbyint(x * 1.44269504f);
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    for (const float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        p = p * r + c;
    p = p * r * r + r + 1.0f;
    const std::int32_t bits = (static_cast<std::int32_t>(n) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return p * power;
}

INLINE double exponential(double x) { return std::exp(x); }

// Keys and values of one head in a block into the second cache: blocks lie anywhere, and no processor would foresee
// where the next one does.
template <typename T>
INLINE void fetch(const T* block, const Shape& shape) {
    constexpr int64_t LINE = 64 / sizeof(T);
    for (int64_t i = 0; i < shape.size; ++i)
        for (int64_t d = 0; d < 2 * shape.head; d += LINE)
            __builtin_prefetch(block + i * shape.position() + d, 0, 2);
}

// Calls each(first position, how many, their keys and values, those of the next block or null) for the blocks of a
// sequence of so many positions.
template <typename T, typename Each>
INLINE void over_blocks(const T* memory, const std::int32_t* table, int64_t length, const Shape& shape, Each each) {
    const int64_t block = shape.size * shape.position();
    for (int64_t first = 0; first < length; first += shape.size, ++table)
        each(first, std::min(shape.size, length - first), memory + table[0] * block,
             first + shape.size < length ? memory + table[1] * block : nullptr);
}

constexpr int64_t WORTH_THREADS = 64;  // tokens; to store fewer takes no longer than to start a thread
constexpr int WIDTH = 64;  // elements that are added up in registers

// Scores of one query [D] with the keys of a block.
template <typename T>
INLINE void score(const T* query, const T* keys, int64_t count, const Shape& shape, T* scores) {
    const T scale = T(1) / std::sqrt(T(shape.head));
    for (int64_t i = 0; i < count; ++i) {
        const T* key = keys + i * shape.position();
        T sum = 0;
        int64_t d = 0;
        for (; d + WIDTH <= shape.head; d += WIDTH)
            for (int e = 0; e < WIDTH; ++e) sum += query[d + e] * key[d + e];
        for (; d < shape.head; ++d) sum += query[d] * key[d];
        scores[i] = sum * scale;
    }
}

// Scores into probabilities, in place.
template <typename T>
INLINE void softmax(T* scores, int64_t length) {
    T most = scores[0], sum = 0;
    for (int64_t i = 1; i < length; ++i) most = std::max(most, scores[i]);
    for (int64_t i = 0; i < length; ++i) sum += scores[i] = exponential(scores[i] - most);
    for (int64_t i = 0; i < length; ++i) scores[i] /= sum;
}

// Adds the values of a block, each times its probability, to N elements of one output, which stay in registers.
template <int N, typename T>
INLINE void add_part(const T* probabilities, const T* values, int64_t count, int64_t stride, T* output) {
    T sums[N];
    for (int d = 0; d < N; ++d) sums[d] = output[d];
    for (int64_t i = 0; i < count; ++i)
        for (int d = 0; d < N; ++d) sums[d] += probabilities[i] * values[i * stride + d];
    for (int d = 0; d < N; ++d) output[d] = sums[d];
}

template <typename T>
INLINE void add_values(const T* probabilities, const T* values, int64_t count, const Shape& shape, T* output) {
    int64_t d = 0;
    for (; d + WIDTH <= shape.head; d += WIDTH)
        add_part<WIDTH>(probabilities, values + d, count, shape.position(), output + d);
    for (; d < shape.head; ++d) add_part<1>(probabilities, values + d, count, shape.position(), output + d);
}

// Queries [R, D] of one key-value head -> output [R, D]; `scores` has room for [R, length].
template <typename T>
INLINE void attend_head(const T* queries, const T* memory, const std::int32_t* table, int64_t length,
                        const Shape& shape, T* scores, T* output) {
    const int64_t heads = shape.queries, head = shape.head;
    over_blocks(memory, table, length, shape, [&](int64_t first, int64_t count, const T* block, const T* next) {
        if (next != nullptr) fetch(next, shape);
        for (int64_t r = 0; r < heads; ++r)
            score(queries + r * head, block, count, shape, scores + r * length + first);
    });
    for (int64_t r = 0; r < heads; ++r) softmax(scores + r * length, length);
    std::fill(output, output + heads * head, T(0));
    over_blocks(memory, table, length, shape, [&](int64_t first, int64_t count, const T* block, const T*) {
        for (int64_t r = 0; r < heads; ++r)
            add_values(scores + r * length + first, block + head, count, shape, output + r * head);
    });
}

// Turns one head [D] by an angle [D/2] for each pair of its halves' elements.
template <typename T>
INLINE void turn_head(T* x, const T* cosine, const T* sine, int64_t half) {
    for (int64_t d = 0; d < half; ++d) {
        const T first = x[d], second = x[half + d];
        x[d] = first * cosine[d] - second * sine[d];
        x[half + d] = second * cosine[d] + first * sine[d];
    }
}

// Turns the queries and keys of one token, packed [G, R + 2, D], and stores its keys and values.
template <typename T>
INLINE void turn_token(T* packed, const T* cosine, const T* sine, const Shape& shape, T* stored) {
    for (int64_t g = 0; g < shape.groups; ++g) {
        for (int64_t r = 0; r <= shape.queries; ++r, packed += shape.head)
            turn_head(packed, cosine, sine, shape.head / 2);
        stored = std::copy(packed - shape.head, packed + shape.head, stored);
        packed += shape.head;
    }
}

#define CLONES(T)                                                                                              \
    FOR_EACH_PROCESSOR void attend(const T* queries, const T* memory, const std::int32_t* table, int64_t length, \
                                   const Shape& shape, T* scores, T* output) {                                  \
        attend_head(queries, memory, table, length, shape, scores, output);                                    \
    }                                                                                                          \
    FOR_EACH_PROCESSOR void turn(T* packed, const T* cosine, const T* sine, const Shape& shape, T* stored) {   \
        turn_token(packed, cosine, sine, shape, stored);                                                       \
    }
CLONES(float)
CLONES(double)

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

void require(bool right, const char* what) {
    if (!right) throw std::invalid_argument(what);
}

template <typename T>
Shape shape_of(const Array<T>& packed, const Array<T>& memory) {
    const Shape shape{packed.shape(1), packed.shape(2) - 2, packed.shape(3), memory.shape(1)};
    require(memory.shape(2) == shape.groups && memory.shape(3) == 2 && memory.shape(4) == shape.head,
            "packed and memory must have the same heads");
    return shape;
}

// The longest of the rows. Throws for tables that would lead outside the memory.
int64_t check(const Array<std::int32_t>& tables, const Array<std::int32_t>& lengths, int64_t blocks, int64_t size) {
    int64_t longest = 0;
    for (int64_t row = 0; row < lengths.size(); ++row) {
        const int64_t length = lengths.data()[row];
        require(length > 0 && length <= tables.shape(1) * size, "lengths must be 1 or more, and within the tables");
        for (int64_t m = 0; m * size < length; ++m) {
            const std::int32_t block = tables.data(row)[m];
            require(block >= 0 && block < blocks, "tables must name blocks of the memory");
        }
        longest = std::max(longest, length);
    }
    return longest;
}

// packed [T, G, R + 2, D], in place; cosine and sine [P, D/2]; positions [T]; slots [T], places in the memory [blocks,
// size, G, 2, D].
template <typename T>
void turn_and_store(Array<T>& packed, const Array<T>& cosine, const Array<T>& sine,
                    const Array<std::int32_t>& positions, const Array<int64_t>& slots, Array<T>& memory, int threads) {
    require(packed.ndim() == 4 && memory.ndim() == 5 && cosine.ndim() == 2 && sine.ndim() == 2,
            "packed [T, G, R + 2, D], cosine and sine [P, D/2], memory [blocks, size, G, 2, D]");
    const Shape shape = shape_of(packed, memory);
    const int64_t tokens = packed.shape(0), half = shape.head / 2, places = memory.shape(0) * shape.size;
    require(positions.size() == tokens && slots.size() == tokens, "each token must have a position and a slot");
    require(cosine.shape(1) == half && sine.shape(1) == half && cosine.shape(0) == sine.shape(0),
            "cosine and sine must be of half a head's elements");
    for (int64_t t = 0; t < tokens; ++t) {
        require(positions.data()[t] >= 0 && positions.data()[t] < cosine.shape(0), "positions must be in the tables");
        require(slots.data()[t] >= 0 && slots.data()[t] < places, "slots must be in the memory");
    }
    T *in = packed.mutable_data(), *stored = memory.mutable_data();
    const T *cosines = cosine.data(), *sines = sine.data();
    const std::int32_t* position = positions.data();
    const int64_t* slot = slots.data();
    py::gil_scoped_release unlocked;
#pragma omp parallel for num_threads(threads) if (tokens >= WORTH_THREADS)
    for (int64_t t = 0; t < tokens; ++t)
        turn(in + t * shape.groups * (shape.queries + 2) * shape.head, cosines + position[t] * half,
             sines + position[t] * half, shape, stored + slot[t] * shape.position());
}

// packed [N, G, R + 2, D]: queries, and the new key and value, which are in the memory [blocks, size, G, 2, D] already;
// tables [N, M]; lengths [N], with the new token; output [N, G, R, D].
template <typename T>
void paged_attention(const Array<T>& packed, const Array<T>& memory, const Array<std::int32_t>& tables,
                     const Array<std::int32_t>& lengths, Array<T>& output, int threads) {
    require(packed.ndim() == 4 && memory.ndim() == 5 && tables.ndim() == 2 && lengths.ndim() == 1 &&
                output.ndim() == 4,
            "packed [N, G, R + 2, D], memory [blocks, size, G, 2, D], tables [N, M], lengths [N], output [N, G, R, D]");
    const Shape shape = shape_of(packed, memory);
    const int64_t rows = packed.shape(0), own = shape.queries * shape.head;
    require(tables.shape(0) == rows && lengths.shape(0) == rows && output.size() == rows * shape.groups * own,
            "packed, tables, lengths and output must have the same rows");
    const int64_t longest = check(tables, lengths, memory.shape(0), shape.size), width = tables.shape(1);
    const T *in = packed.data(), *keys = memory.data();
    T* out = output.mutable_data();
    const std::int32_t *table = tables.data(), *length = lengths.data();
    py::gil_scoped_release unlocked;
#pragma omp parallel num_threads(threads)
    {
        std::vector<T> scores(static_cast<std::size_t>(shape.queries * longest));
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < rows * shape.groups; ++i) {
            const int64_t row = i / shape.groups;
            attend(in + i * (own + 2 * shape.head), keys + i % shape.groups * 2 * shape.head, table + row * width,
                   length[row], shape, scores.data(), out + i * own);
        }
    }
}

template <typename T>
void bind(py::module_& module) {
    module.def("turn_and_store", &turn_and_store<T>, py::arg("packed").noconvert(), py::arg("cosine").noconvert(),
               py::arg("sine").noconvert(), py::arg("positions").noconvert(), py::arg("slots").noconvert(),
               py::arg("memory").noconvert(), py::arg("threads"));
    module.def("paged_attention", &paged_attention<T>, py::arg("packed").noconvert(), py::arg("memory").noconvert(),
               py::arg("tables").noconvert(), py::arg("lengths").noconvert(), py::arg("output").noconvert(),
               py::arg("threads"));
}

}  // namespace

PYBIND11_MODULE(_paged, module) {
    module.doc() = "Keys and values in blocks: stored, and attended over where they lie.";
    bind<float>(module);
    bind<double>(module);
}
