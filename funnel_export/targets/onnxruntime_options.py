"""Options of ONNX Runtime: those of a session, and the lists of allowed configuration entries and CUDA options."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from funnel_export.targets.options import MOST_THREADS, Options

ENTRIES = frozenset(
    {
        "ep.cuda.fpa_intb_gemm",
        "memory.enable_memory_arena_shrinkage",
        "mlas.disable_kleidiai",
        "mlas.enable_gemm_fastmath_arm64_bfloat16",
        "mlas.qnbit.force_fp32",
        "mlas.use_lut_gemm",
        "optimization.disable_specified_optimizers",
        "optimization.enable_cast_chain_elimination",
        "optimization.enable_gelu_approximation",
        "session.allow_released_opsets_only",
        "session.disable_aot_function_inlining",
        "session.disable_cpu_ep_fallback",
        "session.disable_double_qdq_remover",
        "session.disable_prepacking",
        "session.disable_qdq_constant_folding",
        "session.disable_quant_qdq",
        "session.dynamic_block_base",
        "session.enable_dq_matmulnbits_fusion",
        "session.enable_quant_qdq_cleanup",
        "session.force_spinning_stop",
        "session.graph_optimizations_loop_level",
        "session.inter_op.allow_spinning",
        "session.inter_op.spin_backoff_max",
        "session.inter_op.spin_duration_us",
        "session.intra_op.allow_spinning",
        "session.intra_op.spin_backoff_max",
        "session.intra_op.spin_duration_us",
        "session.intra_op_thread_affinities",
        "session.prepack.enable_parallel",
        "session.qdq_matmulnbits_accuracy_level",
        "session.qdq_matmulnbits_block_size",
        "session.qdqisint8allowed",
        "session.set_denormal_as_zero",
        "session.strict_shape_type_inference",
        "session.use_deterministic_compute",
        "session.use_device_allocator_for_initializers",
        "session.x64quantprecision",
    }
)
"""Allowed session configuration entries. Others name files to read or write, or load code."""
CUDA_OPTIONS = frozenset(
    {
        "arena_extend_strategy",
        "cudnn_conv1d_pad_to_nc1d",
        "cudnn_conv_algo_search",
        "cudnn_conv_use_max_workspace",
        "device_id",
        "do_copy_in_default_stream",
        "enable_cuda_graph",
        "enable_skip_layer_norm_strict_mode",
        "fuse_conv_bias",
        "gpu_mem_limit",
        "prefer_nhwc",
        "sdpa_kernel",
        "tunable_op_enable",
        "tunable_op_max_tuning_duration_ms",
        "tunable_op_tuning_enable",
        "use_ep_level_unified_stream",
        "use_tf32",
    }
)
"""Allowed options of the CUDA provider. Others are memory addresses."""


class OnnxRuntimeOptions(Options):
    """Session options; an extra name with a dot is a session configuration entry, another one a provider option."""

    model_config = ConfigDict(frozen=True, extra="allow")

    provider: Annotated[
        Literal["cpu", "cuda"] | None,
        Field(description="execution provider; by default CUDA if it works here, else the CPU"),
    ] = None
    graph_optimization_level: Annotated[
        Literal["basic", "extended", "all"],
        Field(description="graph optimizations; with `all`, the engine runs only on this kind of processor"),
    ] = "extended"
    intra_op_num_threads: Annotated[
        int, Field(ge=0, le=MOST_THREADS, description="threads within an op; 0 is one per core")
    ] = 0
    inter_op_num_threads: Annotated[
        int, Field(ge=0, le=MOST_THREADS, description="threads across ops, in parallel execution")
    ] = 0
    execution_mode: Annotated[Literal["sequential", "parallel"], Field(description="order of ops")] = "sequential"

    @property
    def entries(self) -> dict[str, str]:
        """Session configuration entries."""
        return {name: str(value) for name, value in (self.model_extra or {}).items() if "." in name}

    @property
    def provider_options(self) -> dict[str, str]:
        """Options of the provider."""
        return {name: str(value) for name, value in (self.model_extra or {}).items() if "." not in name}
