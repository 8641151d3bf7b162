"""The reviewers' page: templates, view models and heat maps."""
