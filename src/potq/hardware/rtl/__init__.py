"""SystemVerilog of integer arithmetic on any grid: products, sums, group scaling, a test; a co-processor."""
