// Stand-in: the command line of llama-server.
#pragma once

#include <string>
#include <vector>

// The few options that change anything; all others of the real engine are read and forgotten.
struct Arguments {
    std::string model;
    std::string alias;
    std::string host = "127.0.0.1";
    int port = 8080;
    int parallel = 1;
    int context = 4096;
    bool metrics = false;
    bool slots = true;
    bool static_pages = false;
    std::vector<std::string> api_keys;
};

// Ends the process, as the real engine does, after --version, --help and whatever it does not take.
Arguments parse_arguments(int argc, char ** argv);
