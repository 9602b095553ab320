"""Memory, stream and CUDA graphs of the GPU: buffers are kept from call to call and grow when they must."""

import sys
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from numpy.typing import NDArray

from funnel_export.targets.tensorrt.gpu import call


class Device:
    """One stream, and named buffers."""

    def __init__(self) -> None:
        self.stream = 0
        self._buffers: dict[str, tuple[int, int]] = {}
        self._key: Hashable | None = None
        """What has run last, and may be captured."""
        self._graph: Any = None
        self.stream = int(call("cudaStreamCreate"))

    def reserve(self, name: str, nbytes: int) -> int:
        """Address of a buffer of at least so many bytes; it moves only when it grows."""
        address, size = self._buffers.get(name, (0, 0))
        if size < max(1, nbytes):
            self._forget_graph()  # it holds the old address
            if address:
                call("cudaFree", address)
                del self._buffers[name]
            address = int(call("cudaMalloc", max(1, nbytes)))
            self._buffers[name] = address, max(1, nbytes)
        return address

    def put(self, name: str, array: NDArray[Any]) -> int:
        """Copy a contiguous array to the buffer of this name; returns its address."""
        address = self.reserve(name, array.nbytes)
        self._copy(address, array.ctypes.data, array.nbytes, "cudaMemcpyHostToDevice")
        return address

    def fetch(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Copy buffers into contiguous arrays of these names, and wait."""
        for name, array in arrays.items():
            self._copy(array.ctypes.data, self._buffers[name][0], array.nbytes, "cudaMemcpyDeviceToHost")
        self.wait()

    def launch(self, work: Callable[[int], bool], key: Hashable | None) -> bool:
        """Put work on the stream: the second time in a row that a key comes it is captured, then its graph is launched.

        The first time must run as it is, since libraries may set themselves up in it. Only the latest key keeps its
        graph: NVIDIA advises against several graphs of one execution context.
        """
        if key is None or key != self._key:
            self._forget_graph()
            self._key = key
            return work(self.stream)
        if self._graph is None:
            self._graph = self._capture(work)
        if self._graph is None:
            return False
        call("cudaGraphLaunch", self._graph, self.stream)
        return True

    def replays(self, key: Hashable | None) -> bool:
        """Whether `launch` would launch a graph that is there: then nothing of the work may be changed."""
        return self._graph is not None and key == self._key

    def wait(self) -> None:
        """Wait until all that was put on the stream is done."""
        call("cudaStreamSynchronize", self.stream)

    def close(self) -> None:
        """Give graphs, buffers and stream back; what is closed already stays so."""
        self._forget_graph()
        for address, _ in self._buffers.values():
            call("cudaFree", address)
        self._buffers.clear()
        if self.stream:
            call("cudaStreamDestroy", self.stream)
            self.stream = 0

    def __del__(self) -> None:
        if not sys.is_finalizing():  # a process that ends gives everything back anyway
            self.close()

    def _capture(self, work: Callable[[int], bool]) -> Any:
        """A graph of the work, None if the work failed."""
        from cuda.bindings import runtime

        self.wait()
        call("cudaStreamBeginCapture", self.stream, runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            done = work(self.stream)
        finally:
            graph = call("cudaStreamEndCapture", self.stream)
        try:
            return call("cudaGraphInstantiate", graph, 0) if done else None
        finally:
            call("cudaGraphDestroy", graph)

    def _forget_graph(self) -> None:
        if self._graph is not None:
            self.wait()
            call("cudaGraphExecDestroy", self._graph)
        self._graph = self._key = None

    def _copy(self, to: int, from_: int, nbytes: int, kind: str) -> None:
        from cuda.bindings import runtime

        call("cudaMemcpyAsync", to, from_, nbytes, getattr(runtime.cudaMemcpyKind, kind), self.stream)
