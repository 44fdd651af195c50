"""Measurements, as ratios within one run; nothing here is a test.

`__main__` lists them. `serving/` measures a gateway on the wire, with the programs in `native/`. The other modules
measure or simulate one part each.
"""
