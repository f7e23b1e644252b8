"""GGUF files, which llama.cpp and everything around it load."""
