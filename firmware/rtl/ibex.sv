// Ibex, with a port for instructions and one for data, which answer in the cycle after a request. MULTIPLIER: 0 none, 1 slow,
// 2 fast (three cycles), 3 in one cycle. FAST_BRANCHES: a stage of write-back, and an adder for branch targets.
module system #(parameter MULTIPLIER = 0, FAST_BRANCHES = 0) (
    input clock, input running, output stopped, output written, output [7:0] character);
  wire [31:0] fetch_address, fetched, address, data, found;
  wire [3:0] strobe;
  wire fetching, using, writing;
  reg fetch_done, done;
  always @(posedge clock) begin
    fetch_done <= fetching & running;
    done <= using & running;
  end
  memory memory (
      .clock(clock), .running(running), .fetch_address(fetch_address), .fetched(fetched), .read(using & !writing),
      .write(using & writing & running), .address(address), .data(data), .strobe(strobe), .found(found),
      .stopped(stopped), .written(written), .character(character));

  ibex_top #(
      .RV32M(ibex_pkg::rv32m_e'(MULTIPLIER)), .BranchTargetALU(FAST_BRANCHES != 0), .WritebackStage(FAST_BRANCHES != 0)) core (
      .clk_i(clock), .rst_ni(running), .test_en_i(1'b0), .ram_cfg_i('0), .hart_id_i(0), .boot_addr_i(0),
      .instr_req_o(fetching), .instr_gnt_i(fetching), .instr_rvalid_i(fetch_done), .instr_addr_o(fetch_address),
      .instr_rdata_i(fetched), .instr_rdata_intg_i('0), .instr_err_i(1'b0),
      .data_req_o(using), .data_gnt_i(using), .data_rvalid_i(done), .data_we_o(writing), .data_be_o(strobe),
      .data_addr_o(address), .data_wdata_o(data), .data_wdata_intg_o(), .data_rdata_i(found), .data_rdata_intg_i('0),
      .data_err_i(1'b0), .irq_software_i(1'b0), .irq_timer_i(1'b0), .irq_external_i(1'b0), .irq_fast_i('0), .irq_nm_i(1'b0),
      .scramble_key_valid_i(1'b0), .scramble_key_i('0), .scramble_nonce_i('0), .scramble_req_o(), .debug_req_i(1'b0),
      .crash_dump_o(), .double_fault_seen_o(), .fetch_enable_i(ibex_pkg::IbexMuBiOn), .alert_minor_o(),
      .alert_major_internal_o(), .alert_major_bus_o(), .core_sleep_o(), .scan_rst_ni(1'b1));
endmodule

// the three cells that Ibex leaves to a technology
module prim_buf #(parameter int Width = 1) (input [Width-1:0] in_i, output logic [Width-1:0] out_o);
  assign out_o = in_i;
endmodule

module prim_flop #(parameter int Width = 1, parameter logic [Width-1:0] ResetValue = 0) (
    input clk_i, input rst_ni, input [Width-1:0] d_i, output logic [Width-1:0] q_o);
  always_ff @(posedge clk_i or negedge rst_ni) q_o <= rst_ni ? d_i : ResetValue;
endmodule

module prim_clock_gating #(parameter bit NoFpgaGate = 0, parameter bit FpgaBufGlobal = 1) (
    input clk_i, input en_i, input test_en_i, output logic clk_o);
  assign clk_o = clk_i;
endmodule
