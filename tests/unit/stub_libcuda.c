/* A stub of libcuda.so.1 for one card and one context: copies are copies in memory, REFUSED is a function that fails. */
#include <stdlib.h>
#include <string.h>

static int contexts;
static void *memories[2];

int answer(const char *function)
{
    const char *refused = getenv("REFUSED");
    return refused && !strcmp(refused, function) ? 999 : 0;
}

int left_open(void) { return contexts; }
int cuInit(unsigned flags) { (void)flags; return answer("cuInit"); }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetName(char *name, int size, int device) { (void)device; strncpy(name, "Stub card", size); return 0; }
int cuCtxCreate_v2(void **context, unsigned flags, int device)
{
    (void)flags, (void)device;
    *context = memories, contexts++;
    return 0;
}
int cuCtxDestroy_v2(void *context)
{
    (void)context;
    free(memories[0]), free(memories[1]), contexts--;
    memories[0] = memories[1] = NULL;
    return 0;
}
int cuMemHostAlloc(void **here, size_t size, unsigned flags) { (void)flags; return (*here = memories[0] = malloc(size)) ? 0 : 2; }
int cuMemAlloc_v2(unsigned long long *there, size_t size) { *there = (unsigned long long)(memories[1] = malloc(size)); return 0; }
int cuMemcpyHtoD_v2(unsigned long long there, const void *here, size_t size)
{
    memcpy((void *)there, here, size);
    return answer("cuMemcpyHtoD_v2");
}
int cuCtxSynchronize(void) { return 0; }
