"""Scanning the past of a PACS: find studies, fetch them one by one, and hand each to the road as a whole.

Modules: `selection` (which), `source` (what a PACS can be asked), `dicomweb` and `dimse` (the two ways to ask),
`listing` (finding them all), `staging` (a study until it is whole), `pace` (how hard the PACS may be asked), `fetch`
(one study), `scan` (the process), `report` (how far it is).
"""
