"""The mathematics of explainable dynamics networks: solvers of ordinary and stochastic differential equations with exact gradients, and noise."""
