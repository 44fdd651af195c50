"""What is fixed for users: recorded once in `fixed.json`, compared with what the program shows now."""
