"""The funnel itself, in torch: the written-down truth that everything else is compared with."""

from funnel_export.funnel.cache import FunnelCache
from funnel_export.funnel.patch import apply_funnel, patch_forward, remove_funnel, unpatch_forward

__all__ = ["FunnelCache", "apply_funnel", "patch_forward", "remove_funnel", "unpatch_forward"]
