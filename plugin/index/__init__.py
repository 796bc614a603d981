"""The index: what was received, what became of it, what is still to do. It is the truth; the broker rings.

Modules: `tables`, `database` (engine, clock, schema), `intake` (arrivals), `settling` (when a series and a study
are complete), `leases` (claiming work), `outcomes` (what the work came to), `overview` (reading it all).
"""
