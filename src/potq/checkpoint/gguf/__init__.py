"""Reading GGUF files: all parts, the header once, and a config with everything that the metadata says."""
