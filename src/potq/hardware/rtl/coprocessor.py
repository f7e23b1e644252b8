"""A co-processor for PicoRV32's port (PCPI): a group of activations, a dot product, and scaling, as three instructions.

All have the opcode *custom-1* and take two registers. ``funct3`` says what is done, ``funct7`` is a place in the group. So
the co-processor counts nothing: it holds a group of activations and a sum.

* 0, load: the bytes of both registers become activations ``8 * place`` and the seven after it.
* 1, dot: the codes in both registers times activations ``lanes * place`` and those after it; at place 0 a sum begins.
* 2, scale: the second register plus the scaled sum.

The first register of the last one holds the scale, as the C program stores it (``potq/hardware/c/matrix.h``): how far to
shift, where scales are powers of two; else sign, shift and mantissa in 16 bits, and above them what is added to the shift.
"""

from __future__ import annotations

from potq.errors import ConfigError
from potq.hardware.rtl import modules
from potq.hardware.rtl.design import Design

OPCODE = 0x2B
LOAD, DOT, SCALE = range(3)
WORD = 32
LOADED = 2 * WORD // 8
"""Activations of one load."""
_SYMMETRIC = 127  # the C program rounds no activation to -128
_GROUPS = (32, 64)  # of larger ones' sums the C program drops bits before a float16 scale
_SUM = 31  # bits of a scaled sum behind its sign


def lanes_of(bits: int) -> int:
    """How many codes one instruction takes: 16 for up to 4 bits, 8 for 8 bits.

    Example:
        >>> [lanes_of(bits) for bits in (2, 3, 4, 8)]
        [16, 16, 16, 8]
    """
    return min(16, 2 * WORD // bits)


def check(design: Design) -> None:
    """Refuse what the instructions cannot carry.

    Raises:
        ConfigError: codes of other than 2, 3, 4 or 8 bits, other lanes than :func:`lanes_of` says, activations of other than
            8 bits, or a group of other than 32 or 64.
    """
    bits = design.grid.bits
    if bits not in (2, 3, 4, 8):
        raise ConfigError(f"{design.name}: codes have {bits} bits; the co-processor takes 2, 3, 4 or 8")
    if design.lanes != lanes_of(bits):
        raise ConfigError(f"{design.name}: two registers hold {lanes_of(bits)} codes; design it with so many lanes")
    if design.activation_bits != 8:
        raise ConfigError(f"{design.name}: the co-processor takes activations of 8 bits, found {design.activation_bits}")
    if design.group not in _GROUPS:
        raise ConfigError(f"{design.name}: the co-processor takes groups of 32 or 64, found {design.group}")


def unit(design: Design) -> int:
    """How far a sum is shifted to the left before powers of two as scales shift it to the right, as in the C program."""
    largest = _SYMMETRIC * max(map(abs, design.grid.levels)) * design.group
    return _SUM - largest.bit_length()


def coprocessor(design: Design) -> str:
    """The SystemVerilog of ``NAME_coprocessor`` with the modules that it is made of.

    Raises:
        ConfigError: see :func:`check`.

    Example:
        >>> from potq import QuantScheme
        >>> from potq.hardware.rtl.design import design_of
        >>> text = coprocessor(design_of(QuantScheme("pot3:scale_dtype=e8m0"), name="pot3"))
        >>> [line for line in text.splitlines() if line.startswith("module")]
        ['module pot3_product (', 'module pot3_dot (', 'module pot3_coprocessor (']
    """
    check(design)
    ports = [
        "input  logic clock",
        "input  logic pcpi_valid",
        *(f"input  logic [31:0] pcpi_{name}" for name in ("insn", "rs1", "rs2")),
        "output logic pcpi_wr",
        "output logic [31:0] pcpi_rd",
        "output logic pcpi_ready",
    ]
    comment = [
        f"PicoRV32's port: custom-1 with funct3 0 loads activations, 1 multiplies and sums {design.lanes}, 2 scales.",
        f"funct7 is the place in a group of {design.group}.",
    ]
    body = [*_decode(), *_activations(design), *_dot(design), *_scale(design)]
    return (
        modules.product(design)
        + modules.dot(design, enabled=True)
        + modules.module(design, "coprocessor", comment, ports, body)
    )


def _decode() -> list[str]:
    names = ((LOAD, "load"), (DOT, "multiply"), (SCALE, "scale"))
    return [
        f"wire mine = pcpi_valid && pcpi_insn[6:0] == 7'd{OPCODE};",
        *(f"wire {name} = mine && pcpi_insn[14:12] == 3'd{what};" for what, name in names),
        "wire [6:0] place = pcpi_insn[31:25];",
        "assign pcpi_wr = scale;",
    ]


def _activations(design: Design) -> list[str]:
    """A register of a group, written 64 bits at a time."""
    return [
        f"logic [{8 * design.group - 1}:0] held;",
        f"for (genvar i = 0; i < {design.group // LOADED}; i++) begin : loads",
        "  always_ff @(posedge clock)",
        f"    if (load && place == 7'(i)) held[{8 * LOADED} * i +: {8 * LOADED}] <= {{pcpi_rs2, pcpi_rs1}};",
        "end",
    ]


def _dot(design: Design) -> list[str]:
    """Codes as the C program stores them: words of 2, 4 and 8 bits; of 3 bits two low ones, and a word of the high ones."""
    lanes, width = design.lanes, 8 * design.lanes
    places = design.group // lanes
    at = f"place[{(places - 1).bit_length() - 1}:0]"
    codes = f"wire [{lanes * design.grid.bits - 1}:0] codes"
    if design.grid.bits == 3:
        lines = [
            f"{codes};",
            "wire [15:0] high = place[0] ? pcpi_rs2[31:16] : pcpi_rs2[15:0];",
            "for (genvar i = 0; i < 16; i++) assign codes[3 * i +: 3] = {high[i], pcpi_rs1[2 * i +: 2]};",
        ]
    else:
        lines = [f"{codes} = {'pcpi_rs1' if design.grid.bits == 2 else '{pcpi_rs2, pcpi_rs1}'};"]
    return [
        *lines,
        f"wire [{width - 1}:0] activations = held[{width} * {at} +: {width}];",
        f"wire signed [{design.sum_bits - 1}:0] sum;",
        f"{design.name}_dot the_dot (.clock, .enable(multiply), .first({at} == 0), .codes, .activations, .sum);",
    ]


def _scale(design: Design) -> list[str]:
    """By a shift at once; by a product, and by a shift in the next cycle, lest the path be longer than the core's."""
    lines, width = modules.scaled_sum(design, unit(design))
    if design.scale_dtype != "float16":
        return [
            *lines,
            "assign pcpi_ready = mine;",
            f"wire signed [{width - 1}:0] shifted = scaled >>> pcpi_rs1[5:0];",
            "assign pcpi_rd = pcpi_rs2 + 32'(shifted);",
        ]
    return [
        "wire [10:0] mantissa = {1'b1, pcpi_rs1[9:0]};",
        *(["wire negative = pcpi_rs1[15];"] if design.signed_scale else []),
        *lines,
        f"logic signed [{width - 1}:0] product;",
        "logic multiplied;",
        "always_ff @(posedge clock) begin",
        "  product <= scaled;",
        "  multiplied <= scale && !multiplied;",
        "end",
        "assign pcpi_ready = mine && (!scale || multiplied);",
        "wire [5:0] distance = {1'b0, pcpi_rs1[14:10]} + pcpi_rs1[21:16];",
        f"wire signed [{width - 1}:0] shifted = product >>> distance;",
        "assign pcpi_rd = pcpi_rs2 + 32'(shifted);",
    ]
