"""The index: what was received, what became of it, what is still to do. It is the truth; the broker rings.

Modules: `tables`, `database` (engine, clock, schema), `intake` (arrivals), `settling` (when a series and a study are
complete), `leases` (claiming work), `outcomes` (what the work came to), `archive` and `archive_fetch` (scans of the
past), `overview` (reading it all), `worklist` (what to open first), `assessments` (what people said of a result).
"""
