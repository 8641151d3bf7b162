"""A survey of all causal language models of transformers: where each is tapped, or why it is rejected."""
