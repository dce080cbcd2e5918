"""Studies: methods compared with equal budgets, from one YAML to one page."""
