"""The mathematics of explainable dynamics networks: how much noise at which block."""
