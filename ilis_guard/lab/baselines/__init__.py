"""Other ways to tell wrong answers from right ones, on the very answers that were harvested."""
