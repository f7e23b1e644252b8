// SERV: a bit a cycle. The memory acknowledges in the cycle after a request.
module system (input clock, input running, output stopped, output written, output [7:0] character);
  wire [31:0] fetch_address, fetched, address, data, found;
  wire [3:0] strobe;
  wire fetching, using, writing;
  reg fetch_done, done;
  always @(posedge clock) begin
    fetch_done <= fetching & !fetch_done & running;
    done <= using & !done & running;
  end
  memory memory (
      .clock(clock), .running(running), .fetch_address(fetch_address), .fetched(fetched), .read(using),
      .write(using & !done & writing & running), .address(address), .data(data), .strobe(strobe), .found(found),
      .stopped(stopped), .written(written), .character(character));

  serv_rf_top #(.RESET_PC(32'h80), .WITH_CSR(0)) core (
      .clk(clock), .i_rst(!running), .i_timer_irq(1'b0), .o_ibus_adr(fetch_address), .o_ibus_cyc(fetching),
      .i_ibus_rdt(fetched), .i_ibus_ack(fetch_done), .o_dbus_adr(address), .o_dbus_dat(data), .o_dbus_sel(strobe),
      .o_dbus_we(writing), .o_dbus_cyc(using), .i_dbus_rdt(found), .i_dbus_ack(done), .i_ext_rd(0), .i_ext_ready(1'b0));
endmodule
