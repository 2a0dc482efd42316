// Classifying text by a fastText model (Joulin et al. 2016, arXiv 1607.01759, 1612.03651), for ../rules/language.py.
//
// A text's vector is the mean of the vectors of its words and of their character n-grams. fastText adds up n-gram after
// n-gram; here a word's sum is remembered, since few words make up most of a text, and sums are kept in double. The
// other difference: fastText adds 1e-5 to probabilities before it takes their logarithms, one for each level of its tree.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "hash.h"

namespace curation {

// Numbers and arrays of fastText's file, little-endian. Raises invalid_argument where the file ends too early.
class ModelFile {
public:
    explicit ModelFile(const std::string& path) : in_(path, std::ios::binary) {
        if (!in_) throw std::invalid_argument("cannot be opened");
    }

    template <typename T>
    T read() {
        T value;
        read_into(&value, sizeof value);
        return value;
    }

    template <typename T>
    std::vector<T> read_many(std::int64_t count) {
        if (count < 0 || count > most_values) throw std::invalid_argument("is no fastText model, or damaged");
        std::vector<T> values(static_cast<std::size_t>(count));
        read_into(values.data(), values.size() * sizeof(T));
        return values;
    }

    std::string read_word() {
        std::string word;
        if (!std::getline(in_, word, '\0')) throw std::invalid_argument("is cut short");
        return word;
    }

private:
    static constexpr std::int64_t most_values = std::int64_t{1} << 36;

    void read_into(void* to, std::size_t bytes) {
        in_.read(static_cast<char*>(to), static_cast<std::streamsize>(bytes));
        if (static_cast<std::size_t>(in_.gcount()) != bytes) throw std::invalid_argument("is cut short");
    }

    std::ifstream in_;
};

struct Matrix {
    std::int64_t rows = 0, columns = 0;
    std::vector<float> values;

    const float* row(std::size_t i) const { return &values[i * static_cast<std::size_t>(columns)]; }
};

class FastText {
public:
    explicit FastText(const std::string& path) {
        ModelFile file(path);
        if (file.read<std::int32_t>() != magic) throw std::invalid_argument("is no fastText model");
        if (const auto version = file.read<std::int32_t>(); version != 12)
            throw std::invalid_argument("is of version " + std::to_string(version) + "; 12 is known");
        read_arguments(file);
        read_dictionary(file);
        const bool quantized = file.read<std::uint8_t>() != 0;
        input_ = quantized ? read_quantized(file) : read_matrix(file);
        if (quantized && file.read<std::uint8_t>() != 0)
            output_ = read_quantized(file);
        else {
            if (!quantized) file.read<std::uint8_t>();
            output_ = read_matrix(file);
        }
        const auto labels = static_cast<std::int64_t>(labels_.size());
        if (input_.columns != dim_ || output_.columns != dim_ || output_.rows < labels)
            throw std::invalid_argument("holds matrices of other sizes than it says");
        if (loss_ == hierarchical_softmax) build_tree();
        cache_.resize(cache_slots, {0, {}});
    }

    const std::vector<std::string>& labels() const { return labels_; }

    // The probability of each label, in the order of labels(). A text is one line: words are parted by white space.
    std::vector<double> predict(std::string_view text) {
        Sum sum = sum_of("</s>");  // ends each line
        for (std::size_t at = 0; at < text.size();) {
            if (is_space(text[at])) {
                ++at;
                continue;
            }
            std::size_t end = at;
            while (end < text.size() && !is_space(text[end])) ++end;
            add_word(text.substr(at, end - at), sum);
            at = end;
        }
        std::vector<float> hidden(static_cast<std::size_t>(dim_));
        if (sum.count > 0)
            for (std::size_t i = 0; i < hidden.size(); ++i)
                hidden[i] = static_cast<float>(sum.vector[i] / static_cast<double>(sum.count));
        return probabilities(hidden);
    }

private:
    static constexpr std::int32_t magic = 793712314, hierarchical_softmax = 1, softmax = 3;
    static constexpr std::int64_t most_rows = std::int64_t{1} << 32, most_columns = 1 << 16;
    static constexpr std::size_t cache_slots = std::size_t{1} << 15, longest_cached = 40;

    struct Sum {
        std::uint64_t count;
        std::vector<double> vector;
    };
    struct Slot {
        std::uint64_t key;
        Sum sum;
    };
    struct Node {
        std::size_t left = 0, right = 0;
        std::int64_t count = 0;
    };

    static bool is_space(char c) {
        return c == ' ' || c == '\n' || c == '\r' || c == '\t' || c == '\v' || c == '\f' || c == '\0';
    }

    // FNV-1a over signed characters, as fastText has it.
    static std::uint32_t extend(std::uint32_t hash, char c) {
        return (hash ^ static_cast<std::uint32_t>(static_cast<std::int8_t>(c))) * 16777619U;
    }

    void read_arguments(ModelFile& file) {
        dim_ = file.read<std::int32_t>();
        for (int skipped = 0; skipped < 4; ++skipped) file.read<std::int32_t>();  // ws, epoch, minCount, neg
        const auto word_ngrams = file.read<std::int32_t>();
        loss_ = file.read<std::int32_t>();
        const auto model = file.read<std::int32_t>();
        buckets_ = file.read<std::int32_t>();
        min_ngram_ = file.read<std::int32_t>();
        max_ngram_ = file.read<std::int32_t>();
        file.read<std::int32_t>();  // lrUpdateRate
        file.read<double>();        // t
        if (model != 3) throw std::invalid_argument("is no classifier");
        if (word_ngrams != 1)
            throw std::invalid_argument("has word n-grams of " + std::to_string(word_ngrams) + "; 1 is known");
        if (dim_ < 1 || dim_ > most_columns || buckets_ < 0) throw std::invalid_argument("is damaged");
    }

    void read_dictionary(ModelFile& file) {
        const auto size = file.read<std::int32_t>();
        words_ = static_cast<std::uint32_t>(file.read<std::int32_t>());
        file.read<std::int32_t>();  // labels
        file.read<std::int64_t>();  // tokens
        const auto pruned = file.read<std::int64_t>();
        for (std::int32_t id = 0; id < size; ++id) {
            std::string word = file.read_word();
            const auto count = file.read<std::int64_t>();
            if (file.read<std::int8_t>() == 0)
                word_ids_.emplace(std::move(word), static_cast<std::uint32_t>(id));
            else {
                labels_.push_back(word.compare(0, prefix.size(), prefix) == 0 ? word.substr(prefix.size()) : word);
                label_counts_.push_back(count);
            }
        }
        if (labels_.empty() || word_ids_.size() != words_) throw std::invalid_argument("is damaged");
        const auto buckets = static_cast<std::size_t>(buckets_);
        row_of_bucket_.assign(buckets, none);
        if (pruned < 0)
            for (std::size_t i = 0; i < buckets; ++i) row_of_bucket_[i] = words_ + static_cast<std::uint32_t>(i);
        for (std::int64_t i = 0; i < pruned; ++i) {
            const auto bucket = file.read<std::int32_t>();
            const auto row = file.read<std::int32_t>();
            if (bucket < 0 || bucket >= buckets_ || row < 0) throw std::invalid_argument("is damaged");
            row_of_bucket_[static_cast<std::size_t>(bucket)] = words_ + static_cast<std::uint32_t>(row);
        }
    }

    static Matrix read_matrix(ModelFile& file) {
        Matrix matrix;
        matrix.rows = file.read<std::int64_t>();
        matrix.columns = file.read<std::int64_t>();
        check_size(matrix);
        matrix.values = file.read_many<float>(matrix.rows * matrix.columns);
        return matrix;
    }

    static void check_size(const Matrix& matrix) {
        if (matrix.rows < 0 || matrix.columns < 1 || matrix.rows > most_rows || matrix.columns > most_columns)
            throw std::invalid_argument("is damaged");
    }

    // Product quantization: a row is a norm times the centroids that its codes name, one for each part of the row.
    static Matrix read_quantized(ModelFile& file) {
        const bool has_norms = file.read<std::uint8_t>() != 0;
        Matrix matrix;
        matrix.rows = file.read<std::int64_t>();
        matrix.columns = file.read<std::int64_t>();
        check_size(matrix);
        const auto codes = file.read_many<std::uint8_t>(file.read<std::int32_t>());
        const Quantizer quantizer(file);
        std::vector<float> norms(static_cast<std::size_t>(matrix.rows), 1.0F);
        if (has_norms) {
            const auto norm_codes = file.read_many<std::uint8_t>(matrix.rows);
            const Quantizer of_norms(file);
            for (std::size_t i = 0; i < norms.size(); ++i) norms[i] = of_norms.centroids.at(norm_codes[i]);
        }
        matrix.values.assign(static_cast<std::size_t>(matrix.rows * matrix.columns), 0.0F);
        for (std::size_t i = 0; i < norms.size(); ++i)
            for (std::size_t part = 0; part < quantizer.parts; ++part) {
                const bool last = part + 1 == quantizer.parts;
                const std::size_t width = last ? quantizer.last_width : quantizer.width;
                const std::size_t code = codes.at(i * quantizer.parts + part);
                const std::size_t from = last ? part * 256 * quantizer.width + code * width
                                              : (part * 256 + code) * quantizer.width;
                for (std::size_t j = 0; j < width; ++j)
                    matrix.values.at(i * static_cast<std::size_t>(matrix.columns) + part * quantizer.width + j) =
                        norms[i] * quantizer.centroids.at(from + j);
            }
        return matrix;
    }

    struct Quantizer {
        std::size_t parts, width, last_width;
        std::vector<float> centroids;

        explicit Quantizer(ModelFile& file) {
            const auto dim = file.read<std::int32_t>();
            parts = static_cast<std::size_t>(file.read<std::int32_t>());
            width = static_cast<std::size_t>(file.read<std::int32_t>());
            last_width = static_cast<std::size_t>(file.read<std::int32_t>());
            centroids = file.read_many<float>(std::int64_t{dim} * 256);
        }
    };

    // A Huffman tree over the labels, which come by falling counts: leaves first, the root last.
    void build_tree() {
        const std::size_t leaves = labels_.size();
        tree_.resize(2 * leaves - 1);
        for (std::size_t i = 0; i < tree_.size(); ++i)
            tree_[i].count = i < leaves ? label_counts_[i] : std::int64_t{1000000000000000};
        std::size_t leaf = leaves, node = leaves;  // the next of each; leaf counts down and is one too large
        for (std::size_t i = leaves; i < tree_.size(); ++i) {
            const auto least = [&] {
                return leaf > 0 && tree_[leaf - 1].count < tree_[node].count ? --leaf : node++;
            };
            tree_[i].left = least();
            tree_[i].right = least();
            tree_[i].count = tree_[tree_[i].left].count + tree_[tree_[i].right].count;
        }
    }

    void add_row(std::size_t row, Sum& sum) const {
        if (row >= static_cast<std::size_t>(input_.rows)) return;
        const float* values = input_.row(row);
        for (std::size_t i = 0; i < sum.vector.size(); ++i) sum.vector[i] += static_cast<double>(values[i]);
        ++sum.count;
    }

    static void add(const Sum& part, Sum& sum) {
        for (std::size_t i = 0; i < sum.vector.size(); ++i) sum.vector[i] += part.vector[i];
        sum.count += part.count;
    }

    void add_word(std::string_view word, Sum& sum) {
        if (word.size() > longest_cached) return add(sum_of(word), sum);
        const std::uint64_t key = hash_bytes(word, 0) | 1;  // 0 is an empty slot
        Slot& slot = cache_[key >> 1 & (cache_slots - 1)];
        if (slot.key != key) slot = {key, sum_of(word)};
        add(slot.sum, sum);
    }

    // Of the word's own row and its n-grams', the marks < and > around it.
    Sum sum_of(std::string_view word) const {
        Sum sum{0, std::vector<double>(static_cast<std::size_t>(dim_), 0.0)};
        const auto known = word_ids_.find(std::string(word));
        if (known == word_ids_.end() && word.substr(0, prefix.size()) == prefix) return sum;  // a label in the text
        if (known != word_ids_.end()) add_row(known->second, sum);
        if (word == "</s>" || buckets_ == 0) return sum;
        std::string marked;
        marked.reserve(word.size() + 2);
        marked.append("<").append(word).append(">");
        const auto goes_on = [&](std::size_t i) { return i < marked.size() && (marked[i] & 0xc0) == 0x80; };
        for (std::size_t begin = 0; begin < marked.size(); ++begin) {
            if (goes_on(begin)) continue;
            std::uint32_t hash = 2166136261U;
            std::size_t end = begin;
            for (std::int32_t n = 1; end < marked.size() && n <= max_ngram_; ++n) {
                hash = extend(hash, marked[end++]);
                while (goes_on(end)) hash = extend(hash, marked[end++]);
                if (n < min_ngram_ || (n == 1 && (begin == 0 || end == marked.size()))) continue;
                const std::uint32_t row = row_of_bucket_[hash % static_cast<std::uint32_t>(buckets_)];
                if (row != none) add_row(row, sum);
            }
        }
        return sum;
    }

    double score(std::size_t row, const std::vector<float>& hidden) const {
        const float* values = output_.row(row);
        float sum = 0;
        for (std::size_t i = 0; i < hidden.size(); ++i) sum += values[i] * hidden[i];
        return static_cast<double>(sum);
    }

    std::vector<double> probabilities(const std::vector<float>& hidden) const {
        std::vector<double> result(labels_.size());
        const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
        if (loss_ == hierarchical_softmax) {
            std::vector<double> reached(tree_.size(), 1.0);  // from the root, parents before children
            for (std::size_t i = tree_.size(); i-- > labels_.size();) {
                const double right = sigmoid(score(i - labels_.size(), hidden));
                reached[tree_[i].left] = reached[i] * (1 - right);
                reached[tree_[i].right] = reached[i] * right;
            }
            std::copy_n(reached.begin(), labels_.size(), result.begin());
            return result;
        }
        for (std::size_t i = 0; i < result.size(); ++i) result[i] = score(i, hidden);
        if (loss_ != softmax) {
            for (double& value : result) value = sigmoid(value);
            return result;
        }
        const double highest = *std::max_element(result.begin(), result.end());
        double total = 0;
        for (double& value : result) total += value = std::exp(value - highest);
        for (double& value : result) value /= total;
        return result;
    }

    static inline const std::string prefix = "__label__";
    static constexpr std::uint32_t none = ~std::uint32_t{0};

    std::int32_t dim_ = 0, loss_ = 0, buckets_ = 0, min_ngram_ = 0, max_ngram_ = 0;
    std::uint32_t words_ = 0;
    std::unordered_map<std::string, std::uint32_t> word_ids_;
    std::vector<std::uint32_t> row_of_bucket_;
    std::vector<std::string> labels_;
    std::vector<std::int64_t> label_counts_;
    Matrix input_, output_;
    std::vector<Node> tree_;
    std::vector<Slot> cache_;
};

}  // namespace curation
