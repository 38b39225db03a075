"""Models of other libraries with random weights: what ``customops.apply`` makes of them, and what a step costs."""
