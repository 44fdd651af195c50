"""Files from elsewhere: what a reference names, how its bytes come here whole, what they may take of the disk.

In reading order: `reference`, `store` (from a model's artifact to a file that was verified), `cache` with
`disk_space`, `source` (which address is asked, by whose leave), `download` over `http_answer` and `partial_file`.
"""
