"""The running process: devices, distributed runs, precision, memory, time, provenance."""
