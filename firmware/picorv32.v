// PicoRV32 with 4 MB of memory that answers at once, a character output, a clock to read, and an end.
module system #(parameter BARREL = 0, MULTIPLIER = 0, FAST = 0) (
    input clock, input running, output reg stopped, output reg written, output reg [7:0] character);
  reg [31:0] memory[0:1048575];
  reg [31:0] cycles;
  string image;
  initial begin
    if ($value$plusargs("image=%s", image)) $readmemh(image, memory);
  end

  wire la_read, la_write;
  wire [31:0] la_address, la_data;
  wire [3:0] la_strobe;
  reg [31:0] read;
  processor #(.BARREL(BARREL), .MULTIPLIER(MULTIPLIER), .FAST(FAST)) processor (
      .clock(clock), .running(running), .read(read), .la_read(la_read), .la_write(la_write), .la_address(la_address),
      .la_data(la_data), .la_strobe(la_strobe));

  always @(posedge clock) begin
    cycles <= running ? cycles + 1 : 0;
    written <= 0;
    if (!running) stopped <= 0;
    if (la_read) read <= la_address == 32'h20000000 ? cycles : memory[la_address[21:2]];
    if (la_write) begin
      if (la_address == 32'h10000000) begin
        written <= 1;
        character <= la_data[7:0];
      end else if (la_address == 32'h30000000) stopped <= 1;
      else begin
        if (la_strobe[0]) memory[la_address[21:2]][7:0] <= la_data[7:0];
        if (la_strobe[1]) memory[la_address[21:2]][15:8] <= la_data[15:8];
        if (la_strobe[2]) memory[la_address[21:2]][23:16] <= la_data[23:16];
        if (la_strobe[3]) memory[la_address[21:2]][31:24] <= la_data[31:24];
      end
    end
  end
endmodule
