// Stand-in: who is being answered, who waits, and what was done so far.
#pragma once

#include "speech.hpp"

#include <condition_variable>
#include <mutex>
#include <string>
#include <vector>

class Slots {
  public:
    Slots(int count, int context) : busy_(static_cast<std::size_t>(count)), context_(context) {}

    // The number of a free slot, for which it waits.
    int take();
    void give_back(int slot, const Timings & done);

    // Counts requests of any kind from their last byte to the answer's last byte.
    void begin_request();
    void end_request();
    void wait_until_idle();

    std::string health() const;
    std::string list() const;
    std::string metrics() const;

  private:
    int processing() const;

    mutable std::mutex mutex_;
    std::condition_variable changed_;
    std::vector<bool> busy_;
    int context_;
    int requests_ = 0;
    int deferred_ = 0;
    Timings total_;
};
