"""ONNX models, which ONNX Runtime runs alone: packed weights as operands of its operators for n-bit weights."""
