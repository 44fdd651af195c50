"""Backend programs that we ship: each is a process of its own that speaks `backend.Backend` and nothing else of ours."""
