"""A float16 multiply-accumulate unit in SystemVerilog, the baseline without quantization, and what it computes.

The product of two float16 numbers is exact; it is added to a float32 sum, rounded to nearest even. Subnormal inputs count as
zero, infinities and NaN are not known. The significands are multiplied by the Booth rows of the integer units.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from potq.hardware.rtl.product import booth_rows

NAME = "float16_mac"


def source() -> str:
    """The module ``float16_mac``; its ports are those of the integer units."""
    lines, terms, constant = booth_rows("left", 12, "right", 12, negative="1'b0")
    total = " + ".join([f"24'd{constant % (1 << 24)}", *(f"24'({term.expression})" for term in terms)])
    body = "\n".join(f"  {line}" for line in lines)
    return _TEMPLATE.replace("ROWS", body).replace("TOTAL", total)


def sums(weights: Sequence[int], activations: Sequence[int], first: Sequence[int]) -> list[int]:
    """The bits of the sum before the first product and after each, from the bits of float16 numbers."""
    left, right = (np.asarray(bits, np.uint16).view(np.float16).astype(np.float32) for bits in (weights, activations))
    smallest = np.float32(np.finfo(np.float16).smallest_normal)
    exact = np.where((abs(left) < smallest) | (abs(right) < smallest), np.float32(0), left * right)
    total, found = np.float32(0), [0]
    for product, begins in zip(exact, first, strict=True):
        total = np.float32(0 if begins else total) + product
        found.append(int(np.float32(total + np.float32(0)).view(np.uint32)))
    return found


_TEMPLATE = """\
// float32 sum += float16 code * float16 activation, rounded to nearest even; subnormals are zero, no infinity, no NaN.
module float16_mac (
  input  logic clock,
  input  logic first,
  input  logic [15:0] code,
  input  logic [15:0] activation,
  output logic [31:0] sum
);
  // the product, exact: 22 bits, the point behind bit 20
  wire [11:0] left = {2'b01, code[9:0]};
  wire [11:0] right = {2'b01, activation[9:0]};
ROWS
  wire [23:0] significands = TOTAL;
  wire some = code[14:10] != 0 && activation[14:10] != 0;
  wire [7:0] exponents = 8'(code[14:10]) + 8'(activation[14:10]) + 8'd97;
  wire [31:0] product = !some ? 32'd0 : significands[21]  // exponent, 24 bits of significand
    ? {exponents + 8'd1, significands[21:0], 2'b0} : {exponents, significands[20:0], 3'b0};
  wire product_sign = code[15] ^ activation[15];
  // the sum so far, and which of both is larger
  wire [31:0] before = first || sum[30:23] == 0 ? 32'd0 : {sum[30:23], 1'b1, sum[22:0]};
  wire before_sign = sum[31];
  wire product_larger = product > before;
  wire [31:0] large = product_larger ? product : before;
  wire [31:0] small = product_larger ? before : product;
  wire sign = product_larger ? product_sign : before_sign;
  wire subtract = (product_sign ^ before_sign) && small != 0;
  // the smaller one where the larger one's bits stand: two guard bits, and one for all that falls out
  wire [7:0] distance = large[31:24] - small[31:24];
  wire [53:0] moved = {small[23:0], 30'b0} >> (distance > 8'd29 ? 5'd29 : distance[4:0]);
  wire [26:0] aligned = {moved[53:28], |moved[27:0]};
  wire [27:0] raw = subtract ? {1'b0, large[23:0], 3'b0} - {1'b0, aligned} : {1'b0, large[23:0], 3'b0} + {1'b0, aligned};
  // the first one of 27 bits to the top
  logic [4:0] zeros;
  always_comb begin
    zeros = 5'd27;
    for (int place = 0; place < 27; place++)
      if (raw[place]) zeros = 5'd26 - 5'(place);
  end
  wire [26:0] normal = raw[27] ? {raw[27:2], raw[1] | raw[0]} : raw[26:0] << zeros;
  wire [7:0] exponent = raw[27] ? large[31:24] + 8'd1 : large[31:24] - 8'(zeros);
  // to the nearest, ties to even; a carry out of the significand raises the exponent
  wire up = normal[2] && (normal[3] || normal[1] || normal[0]);
  wire [30:0] rounded = {exponent, normal[25:3]} + 31'(up);
  always_ff @(posedge clock)
    sum <= raw == 0 ? 32'd0 : {sign, rounded};
endmodule
"""
