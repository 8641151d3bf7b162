"""Risk control where error rates are known: how often its promise is broken, and how much is answered."""
