"""What learning from gold solutions has in common, whatever learns: its examples."""
