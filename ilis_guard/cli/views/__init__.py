"""What the command line shows: tables and short texts made of the vocabulary, a module for each thing that is shown."""
