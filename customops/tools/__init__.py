"""For developers: what a GPU would run, on a machine without one."""
