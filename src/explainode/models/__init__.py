"""Networks from pixels in [0, 1] to logits: residual networks, their noise-injected twins, and other people's."""
