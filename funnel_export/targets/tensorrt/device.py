"""A CUDA stream with named buffers and a CUDA graph; buffers are reused between calls."""

import sys
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from numpy.typing import NDArray

from funnel_export.targets.tensorrt.gpu import call


class Device:
    """One stream, its buffers by name, and the CUDA graph of the latest work."""

    def __init__(self) -> None:
        self.stream = 0
        self._buffers: dict[str, tuple[int, int]] = {}
        self._key: Hashable | None = None
        """Key of the work that ran last, which may be captured."""
        self._graph: Any = None
        self.stream = int(call("cudaStreamCreate"))

    def reserve(self, name: str, nbytes: int) -> int:
        """Address of the buffer of this name, with at least `nbytes` bytes; it changes only if the buffer grows."""
        address, size = self._buffers.get(name, (0, 0))
        if size < max(1, nbytes):
            self._forget_graph()  # it uses the old address
            if address:
                call("cudaFree", address)
                del self._buffers[name]
            address = int(call("cudaMalloc", max(1, nbytes)))
            self._buffers[name] = address, max(1, nbytes)
        return address

    def put(self, name: str, array: NDArray[Any]) -> int:
        """Copy a contiguous array to the buffer of this name; return the buffer's address."""
        address = self.reserve(name, array.nbytes)
        self._copy(address, array.ctypes.data, array.nbytes, "cudaMemcpyHostToDevice")
        return address

    def fetch(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Copy buffers into the contiguous arrays of the same names, and wait."""
        for name, array in arrays.items():
            self._copy(array.ctypes.data, self._buffers[name][0], array.nbytes, "cudaMemcpyDeviceToHost")
        self.wait()

    def launch(self, work: Callable[[int], bool], key: Hashable | None) -> bool:
        """Run work on the stream; work with the same key as the call before is captured once and launched as a graph.

        The first call runs directly, since libraries may initialise themselves in it. Only the latest key has a graph:
        NVIDIA advises against several graphs of one execution context.

        Args:
            work: enqueues kernels on the stream that it gets, and returns whether this succeeded.
            key: identifies work with equal shapes and addresses; None is never captured.

        Returns:
            Whether the work succeeded.
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
        """Whether `launch` would use the existing graph; shapes and addresses must then stay unchanged."""
        return self._graph is not None and key == self._key

    def wait(self) -> None:
        """Wait until all work on the stream is done."""
        call("cudaStreamSynchronize", self.stream)

    def close(self) -> None:
        """Free the graph, the buffers and the stream; may be called again."""
        self._forget_graph()
        for address, _ in self._buffers.values():
            call("cudaFree", address)
        self._buffers.clear()
        if self.stream:
            call("cudaStreamDestroy", self.stream)
            self.stream = 0

    def __del__(self) -> None:
        if not sys.is_finalizing():  # the system frees everything when the process ends
            self.close()

    def _capture(self, work: Callable[[int], bool]) -> Any:
        """Capture the work as a graph; None if the work failed."""
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
