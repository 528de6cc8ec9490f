#include "slots.hpp"

#include <algorithm>
#include <sstream>

int Slots::processing() const { return static_cast<int>(std::count(busy_.begin(), busy_.end(), true)); }

int Slots::take() {
    std::unique_lock lock(mutex_);
    const auto free = [this] { return std::find(busy_.begin(), busy_.end(), false); };
    ++deferred_;
    changed_.wait(lock, [&] { return free() != busy_.end(); });
    --deferred_;
    const auto slot = free();
    *slot = true;
    return static_cast<int>(slot - busy_.begin());
}

void Slots::give_back(int slot, const Timings & done) {
    const std::lock_guard lock(mutex_);
    busy_[static_cast<std::size_t>(slot)] = false;
    total_.prompt_n += done.prompt_n;
    total_.prompt_ms += done.prompt_ms;
    total_.predicted_n += done.predicted_n;
    total_.predicted_ms += done.predicted_ms;
    changed_.notify_all();
}

void Slots::begin_request() {
    const std::lock_guard lock(mutex_);
    ++requests_;
}

void Slots::end_request() {
    const std::lock_guard lock(mutex_);
    --requests_;
    changed_.notify_all();
}

void Slots::wait_until_idle() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return requests_ == 0; });
}

std::string Slots::health() const {
    const std::lock_guard lock(mutex_);
    const int idle = static_cast<int>(busy_.size()) - processing();
    return Object()
        .text("status", idle ? "ok" : "no slot available")
        .number("slots_idle", idle)
        .number("slots_processing", processing())
        .str();
}

std::string Slots::list() const {
    const std::lock_guard lock(mutex_);
    std::string slots;
    for (std::size_t id = 0; id < busy_.size(); ++id) {
        Object slot;
        slot.number("id", static_cast<int>(id)).number("n_ctx", context_).number("state", busy_[id] ? 1 : 0);
        slots += (id ? "," : "") + slot.str();
    }
    return '[' + slots + ']';
}

std::string Slots::metrics() const {
    const std::lock_guard lock(mutex_);
    std::ostringstream text;
    const auto add = [&text](const char * type, const char * name, const char * help, double value) {
        text << "# HELP llamacpp:" << name << ' ' << help << "\n# TYPE llamacpp:" << name << ' ' << type
             << "\nllamacpp:" << name << ' ' << value << '\n';
    };
    const auto rate = [](int tokens, double ms) { return tokens ? tokens / ms * 1e3 : 0; };
    add("counter", "prompt_tokens_total", "Number of prompt tokens processed.", total_.prompt_n);
    add("counter", "prompt_seconds_total", "Prompt process time", total_.prompt_ms / 1e3);
    add("counter", "tokens_predicted_total", "Number of generation tokens processed.", total_.predicted_n);
    add("counter", "tokens_predicted_seconds_total", "Predict process time", total_.predicted_ms / 1e3);
    add("gauge", "prompt_tokens_seconds", "Average prompt throughput in tokens/s.",
        rate(total_.prompt_n, total_.prompt_ms));
    add("gauge", "predicted_tokens_seconds", "Average generation throughput in tokens/s.",
        rate(total_.predicted_n, total_.predicted_ms));
    add("gauge", "kv_cache_usage_ratio", "KV-cache usage. 1 means 100 percent usage.", 0);
    add("gauge", "kv_cache_tokens", "KV-cache tokens.", 0);
    add("gauge", "requests_processing", "Number of request processing.", processing());
    add("gauge", "requests_deferred", "Number of request deferred.", deferred_);
    return text.str();
}
