"""Rules by family; each body reads like its equation."""
