"""Results of runs, logged or stored by a benchmark: read, grouped into methods, compared and drawn."""
