"""guard.yaml: one module for each section, secrets, and strict YAML. Reading opens no model, database or network."""
