"""What a configuration will cost, from formulas."""
