"""SystemVerilog of integer arithmetic on any grid: product, multiply-accumulate, dot product, group scaling, test."""
