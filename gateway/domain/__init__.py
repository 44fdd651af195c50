"""The vocabulary of the gateway: immutable records and pure rules, no I/O."""
