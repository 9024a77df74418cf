"""Lightning modules, and checkpoints that survive what happens to files."""
