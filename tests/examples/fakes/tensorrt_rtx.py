"""TensorRT-RTX's Python API: TensorRT's, with a runtime cache."""

import tensorrt
from tensorrt import *  # noqa: F403


class Cache:
    """Keeps compiled kernels."""

    def deserialize(self, blob):
        """Whether the content is of this device."""
        tensorrt._note(f"cache {blob.decode()}")
        return blob == b"kernels"

    def serialize(self):
        """As bytes, like any buffer."""
        return memoryview(b"kernels")


class Config:
    """Has a cache."""

    _cache = None

    def create_runtime_cache(self):
        """An empty one."""
        return Cache()

    def set_runtime_cache(self, cache):
        """Use it."""
        self._cache = cache
        return True


class Engine(tensorrt.Engine):
    """Makes contexts with a cache."""

    def create_runtime_config(self):
        """With a cache to be set."""
        return Config()

    def create_execution_context(self, runtime_config=None):
        """Only with its cache."""
        assert isinstance(runtime_config._cache, Cache)
        return super().create_execution_context()


tensorrt._ENGINE = Engine
__version__ = "1.7"
