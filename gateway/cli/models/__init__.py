"""Commands about models.

In reading order: `models` lists, loads, unloads and changes the models of a running fleet; `load_progress` shows how a
load goes, and `spec_arguments` reads the spec that a user gives. `estimate` computes the memory of a GGUF file without
a gateway.
"""
