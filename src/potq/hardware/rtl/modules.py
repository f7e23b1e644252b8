"""The modules of a design, as SystemVerilog: product, multiply-accumulate, dot product, scaling of groups."""

from __future__ import annotations

from collections.abc import Sequence

from potq.hardware.rtl.design import MANTISSA_BITS, Design
from potq.hardware.rtl.product import booth_rows


def product(design: Design) -> str:
    """``NAME_product``: the terms of one product, without a carry chain."""
    ports = [
        f"input  logic [{design.grid.bits - 1}:0] code",
        f"input  logic [{design.activation_bits - 1}:0] activation",
        *(f"output logic [{term.width - 1}:0] term_{i}" for i, term in enumerate(design.product.terms)),
    ]
    assigns = [f"assign term_{i} = {term.expression};" for i, term in enumerate(design.product.terms)]
    comment = [
        f"One product on the levels {_wrapped(design.grid.levels)} (by code), structure {design.structure}:",
        f"level * activation == (sum of the unsigned terms) {design.product.constant:+d}.",
    ]
    return module(design, "product", comment, ports, [*design.product.lines, *assigns])


def mac(design: Design) -> str:
    """``NAME_mac``: a product a cycle, summed over a group."""
    width, terms = design.sum_bits, range(len(design.product.terms))
    ports = [
        *_STEERING,
        f"input  logic [{design.grid.bits - 1}:0] code",
        f"input  logic [{design.activation_bits - 1}:0] activation",
        f"output logic signed [{width - 1}:0] sum",
    ]
    wires = [f"wire [{term.width - 1}:0] term_{i};" for i, term in enumerate(design.product.terms)]
    links = "".join(f", .term_{i}" for i in terms)
    body = [*wires, f"{design.name}_product one_product (.code, .activation{links});"]
    before = f"(first ? {width}'d{design.start} : sum)"
    if design.chained:
        body += _chain([f"term_{i}" for i in terms], [term.width for term in design.product.terms], width)
        body += _register(f"sum <= {before} + {width}'(chain_{len(terms) - 1});")
    else:
        body += _register(f"sum <= {before}", *(f"  + {width}'(term_{i})" for i in terms), end=";")
    return module(design, "mac", _sum_comment(design, 1), ports, body)


def dot(design: Design, *, enabled: bool = False) -> str:
    """``NAME_dot``: a product of every lane a cycle, summed over a group; if ``enabled``, only in cycles with ``enable``."""
    width, lanes, terms = design.sum_bits, design.lanes, design.product.terms
    code, bits = design.grid.bits, design.activation_bits
    ports = [
        *_STEERING,
        *(["input  logic enable"] if enabled else []),
        f"input  logic [{lanes * code - 1}:0] codes",
        f"input  logic [{lanes * bits - 1}:0] activations",
        f"output logic signed [{width - 1}:0] sum",
    ]
    body = [f"wire [{lanes * term.width - 1}:0] terms_{i};" for i, term in enumerate(terms)]
    parts = [f"terms_{i}[{term.width} * lane +: {term.width}]" for i, term in enumerate(terms)]
    links = [
        f".code(codes[{code} * lane +: {code}])",
        f".activation(activations[{bits} * lane +: {bits}])",
        *(f".term_{i}({part})" for i, part in enumerate(parts)),
    ]
    body += [
        f"for (genvar lane = 0; lane < {lanes}; lane++) begin : products",
        f"  {design.name}_product one_product (",
        *(f"    {link}," for link in links[:-1]),
        f"    {links[-1]}",
        "  );",
        "end",
        f"logic [{width - 1}:0] total;",
        "always_comb begin",
        f"  total = first ? {width}'d{design.start} : sum;",
        f"  for (int lane = 0; lane < {lanes}; lane++)",
        "    total = total" + "".join(f" + {width}'({part})" for part in parts) + ";",
        "end",
        *_register("if (enable) sum <= total;" if enabled else "sum <= total;"),
    ]
    return module(design, "dot", _sum_comment(design, lanes), ports, body)


def scale(design: Design) -> str:
    """``NAME_scale``: a group's sum, scaled, added to a row's total."""
    width, total = design.sum_bits, design.total_bits
    is_float = design.scale_dtype == "float16"
    ports = [
        *_STEERING,
        f"input  logic [{width - 1}:0] sum",
        *([f"input  logic [{MANTISSA_BITS - 1}:0] mantissa"] if is_float else []),
        *(["input  logic negative"] if design.signed_scale else []),
        f"input  logic [{design.shift_bits - 1}:0] shift",
        f"output logic signed [{total - 1}:0] total",
    ]
    body, scaled = scaled_sum(design, MANTISSA_BITS - 1)
    body += [
        f"wire signed [{scaled - 1}:0] shifted = scaled >>> shift;",
        *_register(f"total <= (first ? {total}'d0 : total) + {total}'(shifted);"),
    ]
    factor = "the mantissa of a float16 scale" if is_float else f"2^{MANTISSA_BITS - 1}: scales are powers of two"
    comment = [f"total += (sum * {factor}) >>> shift; with `first`, a total begins.", *_SHIFT]
    return module(design, "scale", comment, ports, body)


def scaled_sum(design: Design, unit: int) -> tuple[list[str], int]:
    """Lines that declare ``scaled``, and its width: ``sum`` times ``mantissa``, by ``negative`` turned; or ``2**unit``."""
    if design.scale_dtype != "float16":
        width = design.sum_bits + unit
        return [f"wire signed [{width - 1}:0] scaled = {{sum, {unit}'b0}};"], width
    width, negative = design.sum_bits + MANTISSA_BITS, "negative" if design.signed_scale else "1'b0"
    lines, terms, constant = booth_rows("multiplier", MANTISSA_BITS + 1, "sum", design.sum_bits, negative=negative)
    added = [f"  + {width}'({term.expression})" for term in terms]
    added[-1] += ";"
    return [
        f"wire [{MANTISSA_BITS}:0] multiplier = {{1'b0, mantissa}};",
        *lines,
        f"wire signed [{width - 1}:0] scaled = {width}'d{constant % (1 << width)}",
        *added,
    ], width


_STEERING = ("input  logic clock", "input  logic first")
_SHIFT = (
    "shift is how far the scale's exponent is below the largest one of the row.",
    "What it shifts out is lost: the result is rounded down.",
)


def _chain(names: Sequence[str], widths: Sequence[int], width: int) -> list[str]:
    """Sums one after another, each kept from being merged with the next; the last one stays within ``width``."""
    lines, bits = [f"wire [{widths[0] - 1}:0] chain_0 = {names[0]};"], widths[0]
    for place, (name, more) in enumerate(zip(names[1:], widths[1:], strict=True), start=1):
        bits = min(width, max(bits, more) + 1)
        lines.append(f"(* keep *) wire [{bits - 1}:0] chain_{place} = {bits}'(chain_{place - 1}) + {bits}'({name});")
    return lines


def _register(*lines: str, end: str = "") -> list[str]:
    body = [f"  {line}" for line in lines]
    body[-1] += end
    return ["always_ff @(posedge clock)", *body]


def _sum_comment(design: Design, lanes: int) -> list[str]:
    what = "A product" if lanes == 1 else f"{lanes} products"
    cycles = design.group // lanes
    return [
        f"{what} a cycle; after {cycles} cycles, the first of them with `first`, sum is that of a group of {design.group}.",
        "In between it is off by a constant: an accumulator starts with the constants of all products.",
        f"{design.sum_bits} bits hold every sum. A shorter group is filled up with activations of zero.",
    ]


def _wrapped(levels: Sequence[int]) -> str:
    return " ".join(map(str, levels)) if len(levels) <= 16 else f"{min(levels)} to {max(levels)}"


def module(design: Design, kind: str, comment: Sequence[str], ports: Sequence[str], body: Sequence[str]) -> str:
    """``NAME_KIND`` of its parts."""
    lines = [*(f"// {line}" for line in comment), f"module {design.name}_{kind} ("]
    lines += [f"  {port}," for port in ports[:-1]] + [f"  {ports[-1]}", ");"]
    return "\n".join([*lines, *(f"  {line}" for line in body), "endmodule"]) + "\n"
