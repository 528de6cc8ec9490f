#include "arguments.hpp"

#include "build-info.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string_view>

namespace {

// How many words follow an option; of the real engine, hidden ones included.
const std::map<std::string_view, int> ARITY = {
#include "options.inc"
};

constexpr std::string_view HELP =
#include "help.inc"
    ;

// The help of the real engine names these in GPU builds only.
constexpr std::string_view GPU_HELP =
    "  -ngl,  --gpu-layers N           layers that a GPU holds\n"
    "  -sm,   --split-mode SPLIT_MODE  how several GPUs share a model: none, layer (default) or graph\n"
    "  -ts,   --tensor-split SPLIT     proportions of the GPUs, such as 3,1\n"
    "  -mg,   --main-gpu i             the GPU of a model that is not split (default: 0)\n";

#ifdef STAND_IN_CUDA
constexpr bool NAMES_GPU_OPTIONS = FAULT != "without-gpu";
#else
constexpr bool NAMES_GPU_OPTIONS = false;
#endif

bool is_dropped(std::string_view option) { return FAULT == "drops-flag" && option == "--jinja"; }

// The words of an option's line up to the first that names it.
std::string_view first_option(std::string_view line) {
    const auto from = line.find_first_not_of(' ');
    if (from == line.npos || from > 12 || line[from] != '-') return {};
    return line.substr(from, line.find_first_of(" ,", from) - from);
}

void print_usage() {
    std::istringstream lines{std::string(HELP)};
    bool is_left_out = false;
    for (std::string line; std::getline(lines, line);) {
        if (line == "model:" && NAMES_GPU_OPTIONS) std::printf("%s\n", GPU_HELP.data());
        // What is indented further belongs to the option above.
        if (line.empty() || !first_option(line).empty()) is_left_out = is_dropped(first_option(line));
        if (!is_left_out) std::printf("%s\n", line.c_str());
    }
}

[[noreturn]] void refuse(const std::string & sentence) {
    std::fprintf(stderr, "%s\n", sentence.c_str());
    print_usage();
    std::exit(1);
}

[[noreturn]] void print_version() {
    std::fprintf(stderr, "version: %d (%s)\n", BUILD_NUMBER, BUILD_COMMIT);
    std::fprintf(stderr, "built with %s for %s\n", BUILD_COMPILER, BUILD_TARGET);
    std::exit(0);
}

bool read_keys(const std::string & path, std::vector<std::string> & keys) {
    std::ifstream file(path);
    for (std::string key; std::getline(file, key);) {
        if (!key.empty()) keys.push_back(key);
    }
    return file.eof();
}

} // namespace

Arguments parse_arguments(int argc, char ** argv) {
    Arguments arguments;
    for (int at = 1; at < argc; ++at) {
        const std::string option = argv[at];
        const auto known = ARITY.find(option);
        if (known == ARITY.end() || is_dropped(option)) refuse("error: unknown argument: " + option);
        if (at + known->second >= argc) refuse("error: invalid parameter for argument: " + option);
        const std::string value = known->second ? argv[at + 1] : "";
        at += known->second;
        try {
            if (option == "--version") print_version();
            if (option == "-h" || option == "--help" || option == "--usage") print_usage(), std::exit(1);
            if (option == "-m" || option == "--model") arguments.model = value;
            if (option == "-a" || option == "--alias") arguments.alias = value;
            if (option == "--host") arguments.host = value;
            if (option == "--port") arguments.port = std::stoi(value);
            if (option == "-np" || option == "--parallel") arguments.parallel = std::max(1, std::stoi(value));
            // 0 is the model's own, of which nothing is known here.
            if ((option == "-c" || option == "--ctx-size") && std::stoi(value)) arguments.context = std::stoi(value);
            if (option == "--metrics") arguments.metrics = true;
            if (option == "--no-slots") arguments.slots = false;
            if (option == "-thp" || option == "--transparent-huge-pages") arguments.static_pages = true;
            if (option == "--api-key") arguments.api_keys.push_back(value);
            if (option == "--api-key-file" && !read_keys(value, arguments.api_keys)) {
                std::fprintf(stderr, "error: failed to open file '%s'\n", value.c_str());
                refuse("error: invalid parameter for argument: " + option);
            }
        } catch (const std::invalid_argument & error) {
            refuse(error.what());
        }
    }
    if (arguments.alias.empty()) arguments.alias = arguments.model;
    return arguments;
}
