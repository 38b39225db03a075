"""Time the operators against torch's, on the rows that the tests read."""
