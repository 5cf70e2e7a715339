"""Measuring: clocks, statistics, the loop over cases, and a record of the machine."""
