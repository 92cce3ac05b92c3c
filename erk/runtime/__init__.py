"""The process: devices, distributed runs, precision, memory, provenance."""
