"""Relevance: a tape of a network's operations, and rules that send a score back along it."""
