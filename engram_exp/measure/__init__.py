"""How long it takes: clocks, the loop over cases, statistics, and what the machine can do at best."""
