"""Products with packed weights: the ops, and the backends that compute them.

``explain(module)`` says which backend a packed module runs on and why not another; ``set_activations(model, "float")`` keeps
activations unrounded.
"""

from potq.config import Activations
from potq.kernels.explain import Explanation, explain, set_activations, use_kernels
from potq.kernels.registry import register_backend

__all__ = ["Activations", "Explanation", "explain", "register_backend", "set_activations", "use_kernels"]
