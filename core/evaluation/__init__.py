"""What a result is measured by."""
