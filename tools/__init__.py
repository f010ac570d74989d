"""Helpers of the repository itself: nothing here is installed or shipped."""
