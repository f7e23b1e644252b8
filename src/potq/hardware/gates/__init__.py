"""Circuits as gates: area and delay, look-up tables, toggles, simulation, and the frontier of a model's variants."""
