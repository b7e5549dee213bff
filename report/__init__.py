"""The results page of a run and the pictures of a validation."""
