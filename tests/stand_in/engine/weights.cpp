#include "weights.hpp"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <sys/mman.h>

namespace {

std::size_t huge_page_bytes() {
    std::ifstream meminfo("/proc/meminfo");
    for (std::string line; std::getline(meminfo, line);) {
        if (line.rfind("Hugepagesize:", 0) == 0) return std::strtoul(line.c_str() + 13, nullptr, 10) << 10;
    }
    return 2 << 20;
}

} // namespace

void load_weights(const std::string & path, bool on_static_pages) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    const std::size_t bytes = file.tellg();
    void * weights = nullptr;
    if (on_static_pages) {
        const std::size_t page = huge_page_bytes();
        const std::size_t whole = (bytes + page - 1) / page * page;
        weights = mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
        if (weights == MAP_FAILED) {
            std::fprintf(stderr, "impl: mmap with huge page size %zu MiB failed (%s)\n", page >> 20, strerror(errno));
            weights = nullptr;
        } else {
            std::printf("impl: using THP with page size %zu MiB done\n", page >> 20);
        }
    }
    if (!weights) weights = std::malloc(bytes);
    file.seekg(0).read(static_cast<char *>(weights), static_cast<std::streamsize>(bytes));
}
