"""How the tables of a review queue became what they are, step by step; run by `ilis_guard.review.migrating`."""
