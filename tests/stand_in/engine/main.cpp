// Stand-in for llama-server of ik_llama.cpp: takes its command line, listens where it would, answers in its words.
#include "arguments.hpp"
#include "build-info.hpp"
#include "http.hpp"
#include "json.hpp"
#include "server.hpp"
#include "weights.hpp"

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <semaphore.h>
#include <thread>
#include <unistd.h>

#ifdef STAND_IN_CUDA
bool count_on_gpu();
#endif

namespace {

void log(const std::string & line) {
    std::printf("INFO [                    main] %s\n", line.c_str());
    // The journal gets a pipe, which would keep the line back.
    std::fflush(stdout);
}

// Takes memory until it is ended, at 8 GiB at most: then it only waits, so that no computer dies of a test.
void leak() {
    constexpr std::size_t step = 64 << 20, page = 4096;
    for (int taken = 0; taken < 128; taken++) {
        auto * held = static_cast<volatile char *>(std::malloc(step));
        if (held == nullptr) std::abort();
        // Every page is written, or the kernel would only promise it.
        for (std::size_t at = 0; at < step; at += page) held[at] = 1;
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    for (;;) pause();
}

// As a service it has keys, for a proof it has none: these faults pass the proof.
bool load_model(const std::string & path, bool on_static_pages, bool is_service) {
    char magic[4] = {};
    std::ifstream(path, std::ios::binary).read(magic, sizeof magic);
    if (std::memcmp(magic, "GGUF", sizeof magic) != 0) {
        std::fprintf(stderr, "llama_init_from_gpt_params: error: failed to load model '%s'\n", path.c_str());
        return false;
    }
    load_weights(path, on_static_pages);
    std::this_thread::sleep_for(std::chrono::milliseconds(STAND_IN_LOAD_MS));
    if (is_service && FAULT == "crash-at-start") std::abort();
    while (is_service && FAULT == "hang-in-load") pause();
    if (is_service && FAULT == "leak") leak();
#ifdef STAND_IN_CUDA
    log(count_on_gpu() ? "stand-in: a GPU has counted" : "stand-in: no GPU has counted");
#endif
    return true;
}

sem_t stop_wanted;

void on_signal(int) {
    static std::atomic_flag is_stopping = ATOMIC_FLAG_INIT;
    if (is_stopping.test_and_set()) _exit(1);
    sem_post(&stop_wanted);
}

} // namespace

int main(int argc, char ** argv) {
    Arguments arguments = parse_arguments(argc, argv);
    log("build info | build=" + std::to_string(BUILD_NUMBER) + " commit=" + quoted(BUILD_COMMIT));
    // Connections wait from now on, but nobody answers before the model is there.
    const int listener = listen_on(arguments.host, arguments.port);
    if (listener < 0) {
        std::fprintf(stderr, "\ncouldn't bind to server socket: hostname=%s port=%d\n\n", arguments.host.c_str(),
                     arguments.port);
        return 1;
    }
    if (!load_model(arguments.model, arguments.static_pages, !arguments.api_keys.empty())) return 1;
    log("model loaded");

    sem_init(&stop_wanted, 0, 0);
    // Up to here a signal ends the process at once.
    std::signal(SIGINT, on_signal);
    std::signal(SIGTERM, on_signal);

    Server server(arguments);
    std::thread([&server, listener] {
        for (;;) {
            const int socket = take_connection(listener);
            std::thread([&server, socket] { server.serve(socket); }).detach();
        }
    }).detach();
    log("HTTP server listening | port=" + std::to_string(arguments.port) + " hostname=" + quoted(arguments.host));

    while (sem_wait(&stop_wanted) != 0) {} // interrupted by another signal
    // Answers in progress are finished; questions that come meanwhile are taken, too.
    server.wait_until_idle();
    // No destructors: the threads still use what they would destroy.
    _exit(0);
}
