/* A stub of libcuda.so.1 VERSION: answers as the real one would on a node in the state of stub_nvidia. */
#include <stdio.h>
#include <string.h>

static int initialised;

static const char *read_line(const char *path)
{
    static char line[64];
    FILE *file = fopen(path, "r");
    line[0] = 0;
    if (file) {
        if (fgets(line, sizeof line, file))
            line[strcspn(line, "\n")] = 0;
        fclose(file);
    }
    return line;
}

static int number(const char *key, int otherwise)
{
    char path[96];
    int value;
    snprintf(path, sizeof path, "/var/lib/stub-nvidia/%s", key);
    return sscanf(read_line(path), "%d", &value) == 1 ? value : otherwise;
}

int cuInit(unsigned int flags)
{
    int error = number("cuda_error", 0);
    (void)flags;
    if (error)
        return error;
    if (!*read_line("/sys/module/nvidia/version"))
        return 100; /* CUDA_ERROR_NO_DEVICE */
    if (strcmp(read_line("/sys/module/nvidia/version"), VERSION))
        return 803; /* CUDA_ERROR_SYSTEM_DRIVER_MISMATCH */
    if (strchr(read_line("/sys/module/nvidia/taint"), 'P') || !number("cards", 0))
        return 100;
    if (!*read_line("/sys/module/nvidia_uvm/version"))
        return 999; /* CUDA_ERROR_UNKNOWN */
    initialised = 1;
    return 0;
}

int cuDeviceGetCount(int *count)
{
    if (!initialised)
        return 3; /* CUDA_ERROR_NOT_INITIALIZED */
    *count = number("cards", 0);
    return 0;
}

int cuDriverGetVersion(int *version)
{
    *version = number("cuda_version", 13000);
    return 0;
}
