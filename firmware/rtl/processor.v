// PicoRV32 as it is measured; with COPROCESSOR, the name of a module, that module at the core's port.
module processor #(parameter BARREL = 0, MULTIPLIER = 0, FAST = 0, START = 0) (
    input clock, input running, input [31:0] read, output la_read, output la_write, output [31:0] la_address,
    output [31:0] la_data, output [3:0] la_strobe);
`ifdef COPROCESSOR
  localparam PORT = 1;
  wire valid, ready, writes;
  wire [31:0] instruction, first, second, result;
  `COPROCESSOR coprocessor (
      .clock(clock), .pcpi_valid(valid), .pcpi_insn(instruction), .pcpi_rs1(first), .pcpi_rs2(second), .pcpi_wr(writes),
      .pcpi_rd(result), .pcpi_ready(ready));
`else
  localparam PORT = 0;
  wire valid, ready = 0, writes = 0;
  wire [31:0] instruction, first, second, result = 0;
`endif
  picorv32 #(
      .PROGADDR_RESET(START), .BARREL_SHIFTER(BARREL), .ENABLE_MUL(MULTIPLIER), .ENABLE_FAST_MUL(FAST),
      .ENABLE_DIV(MULTIPLIER | FAST), .ENABLE_COUNTERS(0), .ENABLE_PCPI(PORT)) core (
      .clk(clock), .resetn(running), .mem_ready(1'b1), .mem_rdata(read), .mem_la_read(la_read), .mem_la_write(la_write),
      .mem_la_addr(la_address), .mem_la_wdata(la_data), .mem_la_wstrb(la_strobe), .irq(0), .pcpi_valid(valid),
      .pcpi_insn(instruction), .pcpi_rs1(first), .pcpi_rs2(second), .pcpi_wr(writes), .pcpi_rd(result), .pcpi_wait(1'b0),
      .pcpi_ready(ready));
endmodule
