// PicoRV32, which looks ahead: one port for instructions and data.
module system #(parameter BARREL = 0, MULTIPLIER = 0, FAST = 0) (
    input clock, input running, output stopped, output written, output [7:0] character);
  wire read, write;
  wire [31:0] address, data, found;
  wire [3:0] strobe;
  memory memory (
      .clock(clock), .running(running), .fetch_address(0), .fetched(), .read(read), .write(write), .address(address),
      .data(data), .strobe(strobe), .found(found), .stopped(stopped), .written(written), .character(character));

  picorv32 #(
      .PROGADDR_RESET(32'h80), .BARREL_SHIFTER(BARREL), .ENABLE_MUL(MULTIPLIER), .ENABLE_FAST_MUL(FAST),
      .ENABLE_DIV(MULTIPLIER | FAST)) core (
      .clk(clock), .resetn(running), .mem_ready(1'b1), .mem_rdata(found), .mem_la_read(read), .mem_la_write(write),
      .mem_la_addr(address), .mem_la_wdata(data), .mem_la_wstrb(strobe), .irq(0),
      .pcpi_wr(1'b0), .pcpi_rd(0), .pcpi_wait(1'b0), .pcpi_ready(1'b0));
endmodule
