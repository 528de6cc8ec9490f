#include "speech.hpp"

#include "build-info.hpp"
#include "dot_product.hpp"

#include <algorithm>
#include <chrono>
#include <thread>

namespace {

using Clock = std::chrono::steady_clock;
using Milliseconds = std::chrono::duration<double, std::milli>;

constexpr Milliseconds PROMPT_TOKEN{0.5};
constexpr Milliseconds TOKEN{FAULT == "slow" ? 50 : 10};

// A syllable, two or three of which make a word. The same prompt gets the same answer.
std::string token(unsigned seed, int number) {
    if (FAULT == "garbage") return "@";
    constexpr std::string_view consonants = "bdfghklmnprstvz", vowels = "aeiou";
    unsigned mixed = (seed + static_cast<unsigned>(number)) * 2654435761u;
    mixed ^= mixed >> 15;
    std::string syllable = number % 5 == 0 || number % 5 == 2 ? " " : "";
    syllable += consonants[mixed % consonants.size()];
    syllable += vowels[mixed / consonants.size() % vowels.size()];
    return syllable;
}

} // namespace

int count_tokens(std::string_view prompt) {
    const int ids = prompt.front() == '[' && prompt.find('{') == prompt.npos ? count_values(prompt) : -1;
    // Four bytes for each token of a text, as with most vocabularies.
    return std::max(1, ids >= 0 ? ids : static_cast<int>(prompt.size() / 4));
}

Object Timings::to_json(int context) const {
    return Object()
        .number("prompt_n", prompt_n)
        .number("prompt_ms", prompt_ms)
        .number("prompt_per_token_ms", prompt_ms / prompt_n)
        .number("prompt_per_second", prompt_n / prompt_ms * 1e3)
        .number("predicted_n", predicted_n)
        .number("predicted_ms", predicted_ms)
        .number("predicted_per_token_ms", predicted_ms / std::max(1, predicted_n))
        .number("predicted_per_second", predicted_n / predicted_ms * 1e3)
        .number("n_ctx", context)
        .number("n_past", prompt_n + predicted_n);
}

Timings speak(std::string_view prompt, int prompt_n, int limit, const Say & say) {
    Timings timings;
    timings.prompt_n = prompt_n;
    const auto asked = Clock::now();
    std::this_thread::sleep_for(PROMPT_TOKEN * prompt_n);
    const unsigned seed = dot_product(prompt);
    const auto began = Clock::now();
    bool goes_on = true;
    while (goes_on && timings.predicted_n < limit) {
        goes_on = say(token(seed, timings.predicted_n++));
        std::this_thread::sleep_until(began + TOKEN * timings.predicted_n);
    }
    timings.prompt_ms = Milliseconds(began - asked).count();
    timings.predicted_ms = Milliseconds(Clock::now() - began).count();
    return timings;
}
