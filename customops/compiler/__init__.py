"""From a graph of formulas to kernels: named axes, gradient, partition, schedule. It knows no operator's class."""
