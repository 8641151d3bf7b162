"""Path functions, one router a resource."""
