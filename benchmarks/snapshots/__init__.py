"""What `benchmarks/snapshot.py` starts: one job a model, its ranks measuring all methods in turn."""
