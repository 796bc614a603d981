"""The index: what was received, what became of it, what is still to do. It is the truth; the broker rings.

Modules: `tables`, `database` (engine, clock, schema), `intake` (arrivals), `settling` (when a series and a study are
complete), `leases` (claiming work), `outcomes` (what the work came to), `future` (a clock that was set back),
`signals`, `withdrawal`, `retention`, `commitment`, `archive` and `archive_fetch` (scans of the past), `embeddings`,
`filters`, `search`, `halfvec` and `rescoring` (asking the archive), `overview` (reading it all), `worklist` (what to
open first), `assessments` (what people said of a result), `people` (who may use the page), `operations`, `census` and
`heartbeats` (how the site does).
"""
