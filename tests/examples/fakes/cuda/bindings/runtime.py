"""The CUDA runtime, with host memory as device memory. At the end of a process all must have been freed."""

import atexit
import ctypes
import enum
import sys


class cudaError_t(enum.IntEnum):
    """Errors."""

    cudaSuccess = 0
    cudaErrorInvalidValue = 1


class cudaMemcpyKind(enum.IntEnum):
    """Directions of a copy."""

    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


_memory = {}
_streams = set()
OK = cudaError_t.cudaSuccess


def cudaGetDeviceCount():
    """One device."""
    return OK, 1


def cudaMalloc(size):
    """Address of new memory."""
    buffer = ctypes.create_string_buffer(size)
    _memory[ctypes.addressof(buffer)] = buffer
    return OK, ctypes.addressof(buffer)


def cudaFree(address):
    """Forget memory."""
    del _memory[address]
    return (OK,)


def cudaStreamCreate():
    """A stream, which is a number."""
    _streams.add(7)
    return OK, 7


def cudaStreamDestroy(stream):
    """Forget a stream."""
    _streams.remove(stream)
    return (OK,)


def cudaStreamSynchronize(stream):
    """Everything here is done at once."""
    return (OK if stream in _streams else cudaError_t.cudaErrorInvalidValue,)


def cudaMemcpyAsync(target, source, size, kind, stream):
    """Copy, if the device's side is memory of this size."""
    device = target if kind is cudaMemcpyKind.cudaMemcpyHostToDevice else source
    if stream not in _streams or device not in _memory or len(_memory[device]) != size:
        return (cudaError_t.cudaErrorInvalidValue,)
    ctypes.memmove(target, source, size)
    return (OK,)


@atexit.register
def leaks():
    """Say what was not freed."""
    if _memory or _streams:
        print(f"leaked: {len(_memory)} buffers, {len(_streams)} streams", file=sys.stderr)
