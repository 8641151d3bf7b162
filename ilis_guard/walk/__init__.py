"""A request on its way: each tier asked in turn, ruled on, and what comes of it, up to tickets and audits."""
