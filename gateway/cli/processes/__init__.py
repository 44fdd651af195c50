"""Commands that stay until a signal ends them.

In reading order: `serve` runs a gateway, by itself (`gateway`, with the lines of `greeting`) or in several processes.
`worker` runs the agent of a further machine, and `backend` runs one of our own backend programs. `until_signal` runs
Trio for them, waits for signals and prints their errors.
"""
