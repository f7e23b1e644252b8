from benchmarks.forced import hold_rivals

hold_rivals()
