/* triad CPUS MIB SECONDS [NODES]: how fast these processors read memory (a sum) and stream it (a triad), as JSON.
 *
 *     cc -O3 -march=native -pthread triad.c -o triad && ./triad 0-15 2048 4
 *
 * A thread on each of CPUS, three arrays of MIB each; every thread touches its part first, so that the pages lie at
 * its own NUMA node, unless NODES are given: then they are interleaved over those. GB are 10^9 bytes. The triad writes
 * past the caches where the processor can, so that the 24 bytes that count per element are all that move. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#ifdef __SSE2__
#include <immintrin.h>
#endif

enum { MOST = 4096, LEAST_TIMES = 3, MOST_TIMES = 200, LINE_DOUBLES = 8, INTERLEAVE = 3 };

static int cpus[MOST], threads;
static double *a, *b, *c;
static size_t elements;
static double limit_s, seconds[2][MOST_TIMES];
static int times[2], done;
static pthread_barrier_t barrier;
static volatile uint64_t sums[MOST];

static double now_s(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

static void fail(const char *what)
{
    fprintf(stderr, "triad: %s\n", what);
    exit(2);
}

/* The numbers in a kernel's list such as 0-3,8. */
static int numbers(const char *text, int *found)
{
    int count = 0, first, last, length;
    for (;; text++) {
        if (sscanf(text, "%d%n", &first, &length) != 1)
            fail("write CPUS and NODES as 0-3,8");
        last = first, text += length;
        if (*text == '-') {
            if (sscanf(++text, "%d%n", &last, &length) != 1)
                fail("write CPUS and NODES as 0-3,8");
            text += length;
        }
        for (; first <= last; first++) {
            if (first < 0 || first >= MOST || count == MOST)
                fail("a number is too high");
            found[count++] = first;
        }
        if (*text != ',')
            return count;
    }
}

static void read_all(size_t from, size_t to, int thread)
{
    const uint64_t *arrays[] = {(uint64_t *)a, (uint64_t *)b, (uint64_t *)c};
    uint64_t sum = 0;
    for (int each = 0; each < 3; each++)
        for (size_t i = from; i < to; i++)
            sum += arrays[each][i];
    sums[thread] = sum;
}

static void triad(size_t from, size_t to)
{
    size_t i = from;
#if defined(__AVX512F__)
    for (__m512d three = _mm512_set1_pd(3); i < to; i += 8)
        _mm512_stream_pd(a + i, _mm512_fmadd_pd(three, _mm512_load_pd(c + i), _mm512_load_pd(b + i)));
    _mm_sfence();
#elif defined(__AVX__)
    for (__m256d three = _mm256_set1_pd(3); i < to; i += 4)
        _mm256_stream_pd(a + i, _mm256_add_pd(_mm256_load_pd(b + i), _mm256_mul_pd(three, _mm256_load_pd(c + i))));
    _mm_sfence();
#elif defined(__SSE2__)
    for (__m128d three = _mm_set1_pd(3); i < to; i += 2)
        _mm_stream_pd(a + i, _mm_add_pd(_mm_load_pd(b + i), _mm_mul_pd(three, _mm_load_pd(c + i))));
    _mm_sfence();
#else
    for (; i < to; i++)
        a[i] = b[i] + 3 * c[i];
#endif
}

static void *work(void *argument)
{
    int thread = (int)(intptr_t)argument;
    size_t lines = elements / LINE_DOUBLES;
    size_t from = lines * thread / threads * LINE_DOUBLES, to = lines * (thread + 1) / threads * LINE_DOUBLES;
    cpu_set_t *set = CPU_ALLOC(MOST);
    size_t size = CPU_ALLOC_SIZE(MOST);
    CPU_ZERO_S(size, set);
    CPU_SET_S(cpus[thread], size, set);
    if (sched_setaffinity(0, size, set))
        fail("can't run on one of CPUS");
    CPU_FREE(set);
    for (size_t i = from; i < to; i++)
        a[i] = 0, b[i] = 1, c[i] = 2;
    for (int kind = 0; kind < 2; kind++) {
        double begin_s = 0, end_s = 0;
        do {
            pthread_barrier_wait(&barrier);
            double start_s = now_s();
            if (kind)
                triad(from, to);
            else
                read_all(from, to, thread);
            pthread_barrier_wait(&barrier);
            if (!thread) {
                seconds[kind][times[kind]] = now_s() - start_s;
                end_s = now_s();
                if (!times[kind]++)
                    begin_s = start_s;
                done = times[kind] == MOST_TIMES || (times[kind] >= LEAST_TIMES && end_s - begin_s > limit_s / 2);
            }
            pthread_barrier_wait(&barrier);
        } while (!done);
        pthread_barrier_wait(&barrier);
    }
    for (size_t i = from; i < to; i++)
        if (a[i] != 7)
            fail("computed something wrong");
    return NULL;
}

static int by_size(const void *left, const void *right)
{
    double difference = *(const double *)left - *(const double *)right;
    return (difference > 0) - (difference < 0);
}

static void report(const char *key, int kind, const char *end)
{
    double bytes = 3.0 * elements * sizeof(double);
    /* The first time warms up. */
    int count = times[kind] - 1;
    qsort(seconds[kind] + 1, count, sizeof(double), by_size);
    printf("\"%s\": {\"best\": %.2f, \"median\": %.2f}%s", key, bytes / seconds[kind][1] / 1e9,
           bytes / seconds[kind][1 + count / 2] / 1e9, end);
}

static double *array(size_t bytes)
{
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        fail("there is not so much memory");
    madvise(memory, bytes, MADV_HUGEPAGE);
    return memory;
}

int main(int count, char **words)
{
    static int nodes[MOST];
    unsigned long mask[MOST / 8 / sizeof(long)] = {0};
    static pthread_t running[MOST];
    long mib = count > 2 ? atol(words[2]) : 0;
    limit_s = count > 3 ? atof(words[3]) : 0;
    if (count < 4 || count > 5 || mib < 1 || limit_s <= 0)
        fail("usage: triad CPUS MIB SECONDS [NODES]");
    threads = numbers(words[1], cpus);
    elements = (size_t)mib * (1 << 20) / sizeof(double);
    if (count > 4) {
        for (int i = 0, found = numbers(words[4], nodes); i < found; i++)
            mask[nodes[i] / (8 * sizeof(long))] |= 1UL << nodes[i] % (8 * sizeof(long));
        if (syscall(SYS_set_mempolicy, INTERLEAVE, mask, (unsigned long)MOST))
            fail("pages can't be interleaved over NODES");
    }
    size_t bytes = elements * sizeof(double);
    a = array(bytes), b = array(bytes), c = array(bytes);
    pthread_barrier_init(&barrier, NULL, threads);
    for (int thread = 0; thread < threads; thread++)
        if (pthread_create(&running[thread], NULL, work, (void *)(intptr_t)thread))
            fail("there can't be so many threads");
    for (int thread = 0; thread < threads; thread++)
        pthread_join(running[thread], NULL);
    printf("{\"threads\": %d, \"array_mib\": %ld, ", threads, mib);
    report("read_gb_s", 0, ", ");
    report("triad_gb_s", 1, "}\n");
    return 0;
}
