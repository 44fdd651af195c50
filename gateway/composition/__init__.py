"""The composition roots: each opens its parts in order, hands each what it needs, and closes them in reverse."""
