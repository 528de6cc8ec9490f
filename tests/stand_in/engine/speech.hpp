// Stand-in: what it says instead of an answer, and at which pace.
#pragma once

#include "json.hpp"

#include <functional>
#include <string>
#include <string_view>

struct Timings {
    int prompt_n = 0;
    double prompt_ms = 0;
    int predicted_n = 0;
    double predicted_ms = 0;

    Object to_json(int context) const;
};

// How many tokens a prompt is, which is JSON: a text, token ids or messages. Throws std::invalid_argument.
int count_tokens(std::string_view prompt);

// Says up to `limit` tokens to a prompt of `prompt_n`. That takes as long as on a computer that reads 2000 tokens/s
// and says 100, and ends early when `say` returns false.
using Say = std::function<bool(const std::string & token)>;
Timings speak(std::string_view prompt, int prompt_n, int limit, const Say & say);
