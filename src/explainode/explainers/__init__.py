"""Explainers: pure configuration on a shared skeleton; the network is an argument of the call."""
