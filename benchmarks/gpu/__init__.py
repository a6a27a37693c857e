"""The parts of `benchmarks/gpu_suite.py`, a module each: what the machine can do, what the kernels do on it."""
