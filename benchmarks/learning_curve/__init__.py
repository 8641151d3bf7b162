"""From no label to a guarantee: what a bundle is worth on a set that it wasn't fitted to, by labels."""
