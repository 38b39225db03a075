/* A libcuda.so.1 for machines without a GPU: the functions that Triton's driver and launcher call.
 *
 * There is one device. Modules are loaded by keeping nothing of them, and memory is the host's. What a GPU would be
 * asked to run goes to the callback, in the caller's thread, which says what the launch returns. As in CUDA, each
 * thread has a current context and needs one, and a kernel gets more than 48 KiB of shared memory only if that was
 * asked for before.
 */
#include <stdlib.h>
#include <string.h>

#include "cuda.h"

enum { DEFAULT_SHARED = 48 << 10, LARGEST_SHARED = 227 << 10, THREADS = 1024, ATTRIBUTES = 8 };

struct CUmod_st { int unused; };
struct CUfunc_st { unsigned magic; unsigned shared_limit; }; /* magic tells a function from a stray pointer */

struct launch { /* the same fields as launcher.py's _Launch */
    CUfunction function;
    CUstream stream;
    void **parameters; /* one pointer for each parameter: to its value */
    unsigned grid[3], block[3];
    unsigned shared_bytes;
    unsigned attribute_count;
    unsigned attributes[ATTRIBUTES]; /* the ids */
};

static CUresult (*callback)(const struct launch *);
static _Thread_local CUcontext current;
static int primary; /* its address is the only context */
static const unsigned MAGIC = 0xC0DEC0DE;

void stub_set_callback(CUresult (*function)(const struct launch *)) { callback = function; }

CUresult cuGetErrorString(CUresult error, const char **text) {
    *text = error == CUDA_ERROR_LAUNCH_FAILED     ? "unspecified launch failure"
            : error == CUDA_ERROR_INVALID_VALUE   ? "invalid argument"
            : error == CUDA_ERROR_INVALID_HANDLE  ? "invalid resource handle"
            : error == CUDA_ERROR_INVALID_CONTEXT ? "invalid device context"
            : error == CUDA_ERROR_INVALID_IMAGE   ? "device kernel image is invalid"
                                                  : "another error";
    return CUDA_SUCCESS;
}

CUresult cuDriverGetVersion(int *version) {
    *version = CUDA_VERSION;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    *device = ordinal;
    return ordinal == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    *value = attribute == CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN          ? LARGEST_SHARED
             : attribute == CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR     ? LARGEST_SHARED + (1 << 10)
             : attribute == CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK                  ? 1 << 16
             : attribute == CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT                     ? 132
             : attribute == CU_DEVICE_ATTRIBUTE_WARP_SIZE                                ? 32
                                                                                         : 1; /* clocks, bus width */
    return device == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuCtxGetCurrent(CUcontext *context) {
    *context = current;
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    *context = (CUcontext)&primary;
    return device == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuCtxSetCurrent(CUcontext context) {
    current = context;
    return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice *device) {
    *device = 0;
    return current ? CUDA_SUCCESS : CUDA_ERROR_INVALID_CONTEXT;
}

CUresult cuCtxGetLimit(size_t *value, CUlimit limit) {
    *value = 1 << 20;
    return CUDA_SUCCESS;
}

CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_SUCCESS; }

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    static struct CUmod_st loaded;
    *module = &loaded;
    if (!current) return CUDA_ERROR_INVALID_CONTEXT;
    return memcmp(image, "\177ELF", 4) == 0 ? CUDA_SUCCESS : CUDA_ERROR_INVALID_IMAGE;
}

CUresult cuModuleUnload(CUmodule module) { return CUDA_SUCCESS; }

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    *function = malloc(sizeof **function); /* it stays: a test may hold the handle */
    **function = (struct CUfunc_st){MAGIC, DEFAULT_SHARED};
    return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
    *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? THREADS : 0; /* registers, spills, static shared */
    return function->magic == MAGIC ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
    if (attribute == CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED) return CUDA_SUCCESS;
    if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES || value > LARGEST_SHARED)
        return CUDA_ERROR_INVALID_VALUE;
    function->shared_limit = value;
    return CUDA_SUCCESS;
}

CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { return CUDA_SUCCESS; }

CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) {
    *status = CU_STREAM_CAPTURE_STATUS_NONE;
    return CUDA_SUCCESS;
}

CUresult cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr pointer) {
    *(CUdeviceptr *)value = pointer;
    return CUDA_SUCCESS;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **parameters, void **extra) {
    if (!current) return CUDA_ERROR_INVALID_CONTEXT;
    if (function->magic != MAGIC) return CUDA_ERROR_INVALID_HANDLE;
    if (config->gridDimX > 0x7fffffff || config->gridDimY > 0xffff || config->gridDimZ > 0xffff ||
        config->blockDimX * config->blockDimY * config->blockDimZ > THREADS || config->numAttrs > ATTRIBUTES ||
        config->sharedMemBytes > function->shared_limit || extra)
        return CUDA_ERROR_INVALID_VALUE;
    struct launch launch = {
        .function = function, .stream = config->hStream, .parameters = parameters,
        .grid = {config->gridDimX, config->gridDimY, config->gridDimZ},
        .block = {config->blockDimX, config->blockDimY, config->blockDimZ},
        .shared_bytes = config->sharedMemBytes, .attribute_count = config->numAttrs,
    };
    for (unsigned i = 0; i < config->numAttrs; i++) launch.attributes[i] = config->attrs[i].id;
    return callback ? callback(&launch) : CUDA_SUCCESS;
}
