"""A kernel with everything that one call of it needs, so that it can be run, or compiled and looked at without a GPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

_POINTERS = {
    torch.uint8: "*u8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
}


def packed_arithmetic() -> bool:
    """Whether kernels may use instructions that Triton's interpreter does not know."""
    return not triton.knobs.runtime.interpret


@dataclass(frozen=True)
class Launch:
    """One call.

    Attributes:
        kernel: the jit function.
        grid: programs along each axis.
        arguments: what varies from call to call, in the order of the kernel's parameters, a tensor first.
        constants: the parameters it is compiled for.
        options: the compiler's: ``num_warps``, ``num_stages``.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    options: dict[str, int] = field(default_factory=dict)

    def run(self) -> None:
        """Enqueue it on the current stream of its tensors' device: Triton itself launches on the current device."""
        with torch.cuda.device_of(self.arguments[0]):
            self.kernel[self.grid](*self.arguments, **self.constants, **self.options)

    def compile(self, capability: int) -> Any:
        """Triton's compiled kernel for a GPU of ``capability`` (80, 90, ...); ``asm["cubin"]`` is its machine code.

        It is what a call with these arguments runs: Triton compiles anew for a number that is 1 or a multiple of 16. Needs
        no GPU, but a process without ``TRITON_INTERPRET``.
        """
        names = self.kernel.arg_names
        signature = {name: _type(argument) for name, argument in zip(names, self.arguments, strict=False)}
        ones = {i: 1 for i, argument in enumerate(self.arguments) if isinstance(argument, int) and argument == 1}
        signature |= dict.fromkeys([*self.constants, *(names[i] for i in ones)], "constexpr")
        aligned = [i for i, argument in enumerate(self.arguments) if isinstance(argument, Tensor) or argument % 16 == 0]
        source = ASTSource(
            self.kernel,
            {name: signature[name] for name in names},
            {(i,): value for i, value in ones.items()}
            | {(names.index(name),): value for name, value in self.constants.items()},
            {(i,): [["tt.divisibility", 16]] for i in aligned},
        )
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=self.options)


def _type(argument: Tensor | int) -> str:
    return _POINTERS[argument.dtype] if isinstance(argument, Tensor) else "i32"
