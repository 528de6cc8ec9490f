#include "dot_product.hpp"

#include <cstddef>
#include <cstdint>
#ifdef STAND_IN_VNNI
#include <immintrin.h>
#endif

namespace {

constexpr std::size_t LANES = 32;
constexpr std::int8_t WEIGHTS[LANES] = {1,  -3, 5,  -7, 11, -13, 17, -19, 23, -29, 31, -37, 41, -43, 47, -53,
                                        59, -61, 67, -71, 73, -79, 83, -89, 97, -99, 101, -103, 107, -109, 113, -127};

#ifdef STAND_IN_VNNI
// A build for a CPU with VNNI is known by this instruction, `vpdpbusd`. It runs only where the CPU has it.
__attribute__((target("avx2,avx512vnni,avx512vl"))) unsigned with_vnni(const char * bytes, std::size_t blocks) {
    const __m256i weights = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(WEIGHTS));
    __m256i sums = _mm256_setzero_si256();
    for (std::size_t block = 0; block < blocks; ++block) {
        const auto * at = reinterpret_cast<const __m256i *>(bytes + block * LANES);
        sums = _mm256_dpbusd_epi32(sums, _mm256_loadu_si256(at), weights);
    }
    alignas(32) unsigned parts[8];
    _mm256_store_si256(reinterpret_cast<__m256i *>(parts), sums);
    unsigned sum = 0;
    for (unsigned part : parts) sum += part;
    return sum;
}
#endif

unsigned without_vnni(const char * bytes, std::size_t from, std::size_t to) {
    unsigned sum = 0;
    for (std::size_t at = from; at < to; ++at) {
        sum += static_cast<unsigned>(static_cast<unsigned char>(bytes[at]) * WEIGHTS[at % LANES]);
    }
    return sum;
}

} // namespace

unsigned dot_product(std::string_view text) {
    std::size_t done = 0;
    unsigned sum = 0;
#ifdef STAND_IN_VNNI
    if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl")) {
        done = text.size() / LANES * LANES;
        sum = with_vnni(text.data(), done / LANES);
    }
#endif
    return sum + without_vnni(text.data(), done, text.size());
}
