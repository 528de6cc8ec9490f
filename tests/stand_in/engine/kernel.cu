// Stand-in for the CUDA kernels: one that counts, so that nvcc has something to compile and a card something to do.
#include <cuda_runtime.h>

__global__ void count(int * value) { atomicAdd(value, 1); }

// Whether a card has counted. Without a card or without a driver every call fails, and no harm is done.
bool count_on_gpu() {
    int devices = 0;
    int * value = nullptr;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) return false;
    if (cudaMalloc(&value, sizeof *value) != cudaSuccess || cudaMemset(value, 0, sizeof *value) != cudaSuccess) {
        return false;
    }
    count<<<1, 32>>>(value);
    int counted = 0;
    // The memory is never given back: a server that runs holds a little of its card.
    return cudaMemcpy(&counted, value, sizeof counted, cudaMemcpyDeviceToHost) == cudaSuccess && counted == 32;
}
