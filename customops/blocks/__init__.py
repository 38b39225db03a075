"""How a stage is computed on a CPU: by blocks that stay in its cache, with torch's own operators."""
