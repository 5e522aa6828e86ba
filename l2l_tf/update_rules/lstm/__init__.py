"""The LSTM rules, and the native kernel that the coordinatewise ones offer."""
