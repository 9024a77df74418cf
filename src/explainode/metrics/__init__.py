"""Measures of explanations: a shared skeleton, the engines that compute, the metrics that store, and the statistics on top."""
