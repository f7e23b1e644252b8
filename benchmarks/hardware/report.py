"""The circuits' tables in docs/hardware.md."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.common.goals import Row
from benchmarks.common.markdown import goals_table, table
from benchmarks.hardware.frontier import WINDOWS
from benchmarks.hardware.goals import FRONTIER, GATES, smallest
from benchmarks.hardware.units import SCHEMES

PEERS = ("int3", "int4", "int8")


def areas(rows: Sequence[Row]) -> str:
    """Every scheme's smallest units: area, delay and toggles, and what they are of int4's."""
    lines = []
    reference = {what: smallest(rows, what, "int4") for what in ("mac", "dot")}
    for scheme in (*SCHEMES, "float16"):
        one, many = (smallest(rows, what, scheme) for what in ("mac", "dot"))
        if one is None or reference["mac"] is None or reference["dot"] is None:
            continue
        sixteen = "-" if many is None else f"{many['area'] / 16:,.0f} ({many['area'] / reference['dot']['area']:.2f})"
        changes = [f"{one['toggles'][layer]:.0f}" for layer in ("SmolLM2", "TinyStories")]
        area = f"{one['area']:,.0f} ({one['area'] / reference['mac']['area']:.2f})"
        delays = [f"{row['delay']:.1f}" if row else "-" for row in (one, many)]
        lines.append([f"`{scheme}`", one["structure"], str(one["bits"]), area, sixteen, *delays, *changes])
    headings = ("", "structure", "sum, bits", "MAC, um2 (of int4)", "dot product, a lane", "MAC, ns", "dot, ns")
    return table((*headings, "toggles, SmolLM2", "TinyStories"), lines)


def structures(rows: Sequence[Row]) -> str:
    """Integers by structure, which the smallest is taken from, and E2M1."""
    lines = []
    for scheme in ("int2", "int3", "int4", "int8", "mxfp4"):
        for one in (row for row in rows if row["what"] == "mac" and row["scheme"] == scheme):
            many = next(r for r in rows if (r["what"], r["scheme"], r.get("structure")) == ("dot", scheme, one["structure"]))
            lines.append([f"`{scheme}`", one["structure"], f"{one['area']:,.0f}", f"{many['area'] / 16:,.0f}"])
    return table(("", "structure", "MAC, um2", "dot product, a lane"), lines)


def ratios(rows: Sequence[Row]) -> str:
    """Each PoT scheme over the integers, by both versions of yosys."""
    lines = []
    for scheme in ("pot2", "pot3", "pot3s", "mxpot", "pot4", "apot4", "mxfp4"):
        line = [f"`{scheme}`"]
        for what in ("mac", "dot", "mac, newer yosys", "dot, newer yosys"):
            own = smallest(rows, what, scheme)
            others = [smallest(rows, what, peer) for peer in PEERS]
            found = [f"{own['area'] / other['area']:.2f}" if own and other else "-" for other in others]
            line.append(" / ".join(found))
        lines.append(line)
    return table(("over int3 / int4 / int8", "MAC", "dot product", "MAC, newer yosys", "dot product, newer yosys"), lines)


def scaling(rows: Sequence[Row]) -> str:
    lines = []
    for scheme in ("pot3", "int4", "pot4"):
        found = {row["scale"]: row["area"] for row in rows if row["what"] == "scale" and row["scheme"] == scheme}
        if {"float16", "e8m0"} <= found.keys():
            both = [f"{found[kind]:,.0f}" for kind in ("float16", "e8m0")]
            lines.append([f"sums of `{scheme}`", *both, f"{found['e8m0'] / found['float16']:.2f}"])
    return table(("", "float16 scales, um2", "powers of two", "ratio"), lines)


def fpga(rows: Sequence[Row]) -> str:
    """Look-up tables of a MAC, in whichever form takes fewest; with multiplier blocks where they are used."""
    lines = []
    for scheme in SCHEMES:
        cells = []
        for family in ("ice40", "xc7"):
            of = [row for row in rows if row["what"] == "fpga" and (row["scheme"], row["family"]) == (scheme, family)]
            plain, with_blocks = ([row for row in of if bool(row["dsps"]) == used] for used in (False, True))
            cells.append(str(min(row["luts"] for row in plain)) if plain else "-")
            best = min(with_blocks, key=lambda row: int(row["luts"]), default=None)
            cells.append(f"{best['luts']} and {best['dsps']}" if best else "-")
        if any(cell != "-" for cell in cells):
            lines.append([f"`{scheme}`", *cells])
    blocks = "with a multiplier block"
    return table(("", "iCE40, LUTs", blocks, "Xilinx 7, LUTs", blocks), lines)


def routed(rows: Sequence[Row]) -> str:
    """Every scheme's smallest form on an iCE40, placed and routed, and its fastest one."""
    lines = []
    for scheme in SCHEMES:
        found = [row for row in rows if row["what"] == "routed" and row["scheme"] == scheme]
        if found:
            small, fast = min(found, key=lambda row: int(row["cells"])), max(found, key=lambda row: float(row["megahertz"]))
            figures = [f"{row['cells']}, {row['megahertz']:.0f}" for row in (small, fast)]
            forms = [f"{row['structure']}, {row['sums']}" for row in (small, fast)]
            lines.append([f"`{scheme}`", figures[0], forms[0], figures[1], forms[1]])
    return table(("", "smallest: cells, MHz", "structure, sums", "fastest: cells, MHz", "structure, sums"), lines)


def frontier(rows: Sequence[Row], model: str) -> str:
    """The points of one model that are on some frontier, the best perplexity first."""
    every = [row for row in rows if row["model"] == model]
    if not every:
        return f"{model} is not measured yet."
    full, *points = every
    lines = [["full precision", "", f"{full['perplexity']:.2f}", "", "", "", ""]]
    for row in sorted(points, key=lambda row: float(row["perplexity"])):
        if row["best"]:
            circuit = row["circuit"]
            costs = [f"{circuit['dot'] + circuit['scaling']:,.0f}", f"{circuit['toggles']:.0f}", f"{row['bytes']:.3f}"]
            perplexity = f"{row['perplexity']:.2f}" if row["perplexity"] < 1000 else f"{row['perplexity']:.3g}"
            lines.append([f"`{row['scheme']}`", f"int{row['activation_bits']}", perplexity, *costs, ", ".join(row["best"])])
    window, windows = WINDOWS[model]
    perplexity = f"perplexity, {windows} windows of {window}"
    return table((model, "activations", perplexity, "area, um2", "toggles", "bytes", "on the frontier of"), lines)


def document() -> dict[str, str]:
    """The tables of docs/hardware.md."""
    content = GATES.read()
    rows, points = content["rows"], FRONTIER.read()["rows"]
    found = {"areas": areas(rows), "structures": structures(rows), "ratios": ratios(rows), "scaling": scaling(rows)}
    frontiers = {f"frontier {model}": frontier(points, model) for model in WINDOWS}
    goals = goals_table([*content["goals"], *FRONTIER.read()["goals"]])
    return {**found, "fpga": fpga(rows), "routed": routed(rows), **frontiers, "goals gates": goals}
