"""TensorRT engines: options, building, the cache and its records, running and timing one, and its parity."""
