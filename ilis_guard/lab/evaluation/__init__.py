"""How good methods are at telling wrong answers from right ones: rows -> trials -> figures -> tables and a page."""
