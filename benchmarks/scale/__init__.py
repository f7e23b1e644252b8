"""Large models on a small machine: memory, time, several processes, experts."""
