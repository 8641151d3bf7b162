"""Compare our unsupervised scores with lm-polygraph's own estimators, on the same answers."""
