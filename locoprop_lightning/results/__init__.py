"""Results of runs, logged with TensorBoard or stored by a benchmark: read, grouped into methods, compared and drawn."""
