"""killercall beside its peers: `python -m benchmarks` measures, `benchmarks.compare` counts."""
