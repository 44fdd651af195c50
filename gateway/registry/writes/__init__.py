"""What each write of the registry means: pure functions from the stored rows to those that should be stored."""
