"""The process: noise schedules, what a network predicts, coefficient tables, the noise contract. NumPy alone."""
