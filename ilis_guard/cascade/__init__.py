"""The loop over tiers: each model is called, its answer scored and ruled on, until a rule ends the request."""
