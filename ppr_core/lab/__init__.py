"""Studies over a store: what to compute, where and when."""
