"""Fetches model files: what a reference means, how its bytes arrive complete, and how much of the disk they may use.

In reading order: `reference`, `store` (from a model's artifact to a file that was verified), `cache` with
`disk_space`, `source` (which address is asked, by whose leave), `download` over `http_answer` and `partial_file`.
"""
