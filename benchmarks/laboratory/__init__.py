"""The laboratory: questions, answers, and the tables of how well each method tells wrong answers from right ones."""
