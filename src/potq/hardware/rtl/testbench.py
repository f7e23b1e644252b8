"""A testbench that reads vectors from files and compares: it prints a line a module, and fails if anything differs."""

from __future__ import annotations

from potq.hardware.rtl.design import Design
from potq.hardware.rtl.vectors import Vectors, product_vectors, scale_vectors, sum_vectors

GROUPS = 200
"""Random groups for the dot product, and a quarter of it for the slower multiply-accumulate and for rows of scaled sums."""


def vectors_of(design: Design) -> dict[str, Vectors]:
    """By module: every product; group sums; scaled sums."""
    return {
        "product": product_vectors(design),
        "mac": sum_vectors(design, "mac", GROUPS // 4),
        "dot": sum_vectors(design, "dot", GROUPS),
        "scale": scale_vectors(design, GROUPS // 4),
    }


def testbench(design: Design, vectors: dict[str, Vectors]) -> str:
    """``NAME_testbench``, which reads ``NAME_MODULE.hex`` from the current folder."""
    lines = [
        f"// Compares {design.name}_* with Python's integers, which the files {design.name}_*.hex hold.",
        f"module {design.name}_testbench;",
        "  logic clock = 0;",
        "  int wrong = 0, differing;",
    ]
    for kind, found in vectors.items():
        lines += _signals(design, kind, found)
    lines += ["  initial begin"]
    for kind, found in vectors.items():
        lines += [f"    {line}" for line in _run(design, kind, found)]
    lines += ['    if (wrong != 0) $fatal(1, "%0d results differ", wrong);', "    $finish;", "  end", "endmodule"]
    return "\n".join(lines) + "\n"


def _signals(design: Design, kind: str, vectors: Vectors) -> list[str]:
    driven = [field.name for field in vectors.fields if field.name not in ("expected", "compared")]
    ports = {name: f"{kind}_{name}" for name in driven}
    found = vectors.fields[0].width
    lines = [f"  logic [{field.width - 1}:0] {kind}_{field.name};" for field in vectors.fields]
    lines += [
        f"  wire [{found - 1}:0] {kind}_found;",
        f"  logic [{vectors.width - 1}:0] {kind}_words [{len(vectors.words)}];",
    ]
    if kind == "product":
        terms = design.product.terms
        lines += [f"  wire [{term.width - 1}:0] term_{i};" for i, term in enumerate(terms)]
        ports |= {f"term_{i}": f"term_{i}" for i in range(len(terms))}
        widened = max(found, *(term.width for term in terms))
        total = " + ".join([f"{widened}'d{design.product.constant % (1 << widened)}", *_widened(design, widened)])
        lines += [
            f"  wire [{widened - 1}:0] product_total = {total};",
            f"  assign product_found = product_total[{found - 1}:0];",
        ]
    else:
        ports |= {"clock": "clock", "total" if kind == "scale" else "sum": f"{kind}_found"}
    links = ", ".join(f".{port}({signal})" for port, signal in ports.items())
    return [*lines, f"  {design.name}_{kind} the_{kind} ({links});"]


def _widened(design: Design, width: int) -> list[str]:
    return [f"{width}'(term_{i})" for i in range(len(design.product.terms))]


def _run(design: Design, kind: str, vectors: Vectors) -> list[str]:
    names = ", ".join(f"{kind}_{field.name}" for field in vectors.fields)
    compared = f"{kind}_compared && " if any(field.name == "compared" for field in vectors.fields) else ""
    return [
        f'$readmemh("{design.name}_{kind}.hex", {kind}_words);',
        "differing = 0;",
        f"for (int i = 0; i < {len(vectors.words)}; i++) begin",
        f"  {{{names}}} = {kind}_words[i];",
        "  #1 clock = 1;",
        "  #1 clock = 0;",
        f"  if ({compared}{kind}_found !== {kind}_expected) differing++;",
        "end",
        f'$display("{design.name}_{kind}: {len(vectors.words)} vectors, %0d differ", differing);',
        "wrong += differing;",
    ]
