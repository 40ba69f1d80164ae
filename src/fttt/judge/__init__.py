"""The code-judge service and its sandbox."""
