// Stand-in for llama-bench and llama-sweep-bench, which are built but never asked for numbers.
#include <cstdio>

int main(int, char ** argv) {
    std::printf("usage: %s [options]\n\nThis is a stand-in: it measures nothing.\n", argv[0]);
}
