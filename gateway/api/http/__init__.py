"""HTTP itself: the listener, requests and responses, credentials, and the guards in front of every route."""
