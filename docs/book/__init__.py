"""The book of gradients: a site of every operator and layer, made of the package's own docstrings and code."""
