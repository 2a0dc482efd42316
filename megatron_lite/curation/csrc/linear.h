// A linear classifier over words, passage by passage (see ../rules/toxicity.py).

#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "hash.h"
#include "lowercase.h"
#include "words.h"

namespace curation {

struct Passages {
    std::size_t words = 0;
    std::size_t flagged_words = 0;  // in passages whose probability reaches the threshold
    double highest = 0;             // probability of a passage
};

// Features of a passage are counts of words times their idf, scaled to length 1 (tf-idf, as scikit-learn's
// TfidfVectorizer); its probability is the logistic function of their weighted sum and a bias.
class LinearClassifier {
public:
    LinearClassifier(const std::vector<std::string>& words, std::vector<float> weights, std::vector<float> idfs,
                     double bias)
        : weights_(std::move(weights)), idfs_(std::move(idfs)), bias_(bias) {
        if (weights_.size() != words.size() || idfs_.size() != words.size())
            throw std::invalid_argument(std::to_string(words.size()) + " words, " + std::to_string(weights_.size()) +
                                        " weights and " + std::to_string(idfs_.size()) + " idfs: they must be as many");
        for (std::size_t i = 0; i < words.size(); ++i) numbers_.emplace(hash_bytes(words[i], 0), i);
    }

    // A passage is `passage_words` words of the splitter, or what is left at the end.
    Passages judge(std::string_view original, std::size_t passage_words, double threshold) const {
        std::string text;
        lowercase(original, text);
        Passages result;
        Counts counts{std::vector<std::uint32_t>(weights_.size()), {}};
        std::size_t words = 0;
        const auto finish = [&] {
            const double probability = classify(counts);
            result.words += words;
            if (probability >= threshold) result.flagged_words += words;
            if (probability > result.highest) result.highest = probability;
            words = 0;
        };
        Splitter splitter(text);
        for (Token token; splitter.next(token);) {
            if (!token.is_word) continue;
            counts.add(numbers_.find(hash_bytes(std::string_view(text).substr(token.begin, token.end - token.begin), 0)),
                       numbers_.end());
            if (++words == passage_words) finish();
        }
        if (words > 0) finish();
        return result;
    }

private:
    using Numbers = std::unordered_map<std::uint64_t, std::size_t>;

    struct Counts {
        std::vector<std::uint32_t> of;     // by feature
        std::vector<std::size_t> present;  // features in the order of their first words

        void add(Numbers::const_iterator feature, Numbers::const_iterator none) {
            if (feature != none && of[feature->second]++ == 0) present.push_back(feature->second);
        }
    };

    // The probability of a passage; leaves the counts empty.
    double classify(Counts& counts) const {
        double sum = 0, squares = 0;
        for (const std::size_t i : counts.present) {
            const double value = static_cast<double>(counts.of[i]) * static_cast<double>(idfs_[i]);
            sum += value * static_cast<double>(weights_[i]);
            squares += value * value;
            counts.of[i] = 0;
        }
        counts.present.clear();
        return 1 / (1 + std::exp(-(bias_ + (squares > 0 ? sum / std::sqrt(squares) : 0))));
    }

    Numbers numbers_;  // of features, by the hash of their word
    std::vector<float> weights_, idfs_;
    double bias_;
};

}  // namespace curation
