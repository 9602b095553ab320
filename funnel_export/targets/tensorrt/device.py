"""Memory, stream and CUDA graphs of the GPU: buffers are kept from call to call and grow when they must."""

import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from numpy.typing import NDArray

from funnel_export.targets.tensorrt.gpu import call

MOST_GRAPHS = 8
"""CUDA graphs that are kept, each for one shape."""


class Device:
    """One stream, and named buffers."""

    def __init__(self) -> None:
        self.stream = int(call("cudaStreamCreate"))
        self._buffers: dict[str, tuple[int, int]] = {}
        self._graphs: OrderedDict[Hashable, Any] = OrderedDict()
        """Captured work by key; None for what has run once and may be captured."""

    def reserve(self, name: str, nbytes: int) -> int:
        """Address of a buffer of at least so many bytes; it moves only when it grows."""
        address, size = self._buffers.get(name, (0, 0))
        if size < max(1, nbytes):
            self._forget_graphs()  # they hold the old address
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
        """Put work on the stream: the second time that a key comes it is captured, from then on its graph is launched.

        The first time must run as it is, since libraries may set themselves up in it.
        """
        if key is None:
            return work(self.stream)
        if key not in self._graphs:
            done = work(self.stream)
            if done:
                self._remember(key, None)
            return done
        if self._graphs[key] is None:
            self._remember(key, self._capture(work))
        self._graphs.move_to_end(key)
        call("cudaGraphLaunch", self._graphs[key], self.stream)
        return True

    def wait(self) -> None:
        """Wait until all that was put on the stream is done."""
        call("cudaStreamSynchronize", self.stream)

    def close(self) -> None:
        """Give graphs, buffers and stream back; what is closed already stays so."""
        self._forget_graphs()
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
        from cuda.bindings import runtime

        self.wait()
        call("cudaStreamBeginCapture", self.stream, runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            work(self.stream)
        finally:
            graph = call("cudaStreamEndCapture", self.stream)
        try:
            return call("cudaGraphInstantiate", graph, 0)
        finally:
            call("cudaGraphDestroy", graph)

    def _remember(self, key: Hashable, graph: Any) -> None:
        self._graphs[key] = graph
        while len(self._graphs) > MOST_GRAPHS:
            self._destroy(self._graphs.popitem(last=False)[1])

    def _forget_graphs(self) -> None:
        for graph in self._graphs.values():
            self._destroy(graph)
        self._graphs.clear()

    def _destroy(self, graph: Any) -> None:
        if graph is not None:
            self.wait()
            call("cudaGraphExecDestroy", graph)

    def _copy(self, to: int, from_: int, nbytes: int, kind: str) -> None:
        from cuda.bindings import runtime

        call("cudaMemcpyAsync", to, from_, nbytes, getattr(runtime.cudaMemcpyKind, kind), self.stream)
