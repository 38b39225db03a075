"""Execute the PTX of a compiled kernel on NumPy arrays. Depends on NumPy only."""
