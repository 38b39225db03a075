"""The proofs of the operators, which ``customops prove`` shows and the tests run over all cases."""
