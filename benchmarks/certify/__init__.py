"""Risk control on populations with known error rates: how often the promise is broken, and how much is answered."""
