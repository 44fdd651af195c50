"""The composition roots: each opens its parts in order, hands each what it needs, and closes them in reverse.

`gateway` (`open_gateway`) over `parts`, `http` (every route), `workers` (embedded and remote ones), `estimates`;
`worker` (`run_worker`) is the root of `gateway worker`.
"""
