// 4 MB that answer at once: instructions, and data with a character output, a clock to read, and an end.
module memory (
    input clock, running,
    input [31:0] fetch_address, output reg [31:0] fetched,
    input read, write, input [31:0] address, data, input [3:0] strobe, output reg [31:0] found,
    output reg stopped, written, output reg [7:0] character);
  reg [31:0] words[0:1048575];
  reg [31:0] cycles;
  string image;
  initial begin
    if ($value$plusargs("image=%s", image)) $readmemh(image, words);
  end

  always @(posedge clock) begin
    cycles <= running ? cycles + 1 : 0;
    written <= 0;
    if (!running) stopped <= 0;
    fetched <= words[fetch_address[21:2]];
    if (read) found <= address == 32'h20000000 ? cycles : words[address[21:2]];
    if (write) begin
      if (address == 32'h10000000) begin
        written <= 1;
        character <= data[7:0];
      end else if (address == 32'h30000000) stopped <= 1;
      else begin
        if (strobe[0]) words[address[21:2]][7:0] <= data[7:0];
        if (strobe[1]) words[address[21:2]][15:8] <= data[15:8];
        if (strobe[2]) words[address[21:2]][23:16] <= data[23:16];
        if (strobe[3]) words[address[21:2]][31:24] <= data[31:24];
      end
    end
  end
endmodule
