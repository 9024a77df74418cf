"""The configuration tree, installed as `explainode.conf`."""
