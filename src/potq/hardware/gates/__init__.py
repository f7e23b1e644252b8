"""Circuits as gates: area and delay, look-up tables, placing and routing, toggles, simulation; a model's frontier."""
