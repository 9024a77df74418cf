"""Adversarial attacks in pixel units on any network: gradient steps, the nearest boundary, a single pixel."""
