"""The cpu backend: int8 products with SIMD kernels written in C++ (``csrc/``)."""
