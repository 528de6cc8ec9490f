// Stand-in: the HTTP server, as far as its clients see it.
#pragma once

#include "arguments.hpp"
#include "http.hpp"
#include "slots.hpp"

#include <atomic>
#include <string>

class Server {
  public:
    explicit Server(const Arguments & arguments)
        : arguments_(arguments), context_(arguments.context / arguments.parallel),
          slots_(arguments.parallel, context_) {}

    // Answers the one request of a connection; of several at once, each from a thread of its own.
    void serve(int socket);
    void wait_until_idle() { slots_.wait_until_idle(); }

  private:
    struct Task {
        bool is_chat = false;
        bool is_stream = false;
        std::string prompt; // JSON
        int tokens = 0;     // of the prompt
        int limit = -1;     // of the answer, negative for none
        std::string model;  // JSON
    };

    void route(Connection & connection, const Request & request);
    bool may_ask(const Request & request) const;
    void complete(Connection & connection, const Request & request, bool is_chat);
    void answer(Connection & connection, const Task & task);

    const Arguments arguments_;
    const int context_;
    Slots slots_;
    std::atomic<int> chats_{0};
};
