"""A model that tells a story on emulated boards."""
