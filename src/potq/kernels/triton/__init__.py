"""The triton backend: dequantization and fused products on CUDA GPUs (docs/gpu.md). Needs the extra ``potq[gpu]``."""
