"""A policy put to the ground it stands on: tiers, bundles and queue; what is in force, and what follows its file."""
