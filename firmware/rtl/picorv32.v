// PicoRV32, which looks ahead: one port for instructions and data.
module system #(parameter BARREL = 0, MULTIPLIER = 0, FAST = 0) (
    input clock, input running, output stopped, output written, output [7:0] character);
  wire read, write;
  wire [31:0] address, data, found;
  wire [3:0] strobe;
  memory memory (
      .clock(clock), .running(running), .fetch_address(0), .fetched(), .read(read), .write(write), .address(address),
      .data(data), .strobe(strobe), .found(found), .stopped(stopped), .written(written), .character(character));

  processor #(.BARREL(BARREL), .MULTIPLIER(MULTIPLIER), .FAST(FAST), .START(32'h80)) processor (
      .clock(clock), .running(running), .read(found), .la_read(read), .la_write(write), .la_address(address),
      .la_data(data), .la_strobe(strobe));
endmodule
