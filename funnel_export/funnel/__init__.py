"""The funnel in PyTorch: the reference that every export, runtime and engine is compared with."""

from funnel_export.funnel.cache import FunnelCache
from funnel_export.funnel.patch import apply_funnel, is_patched, patch_forward, remove_funnel, unpatch_forward

__all__ = ["FunnelCache", "apply_funnel", "is_patched", "patch_forward", "remove_funnel", "unpatch_forward"]
