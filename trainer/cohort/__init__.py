"""From an archive, a folder or the plugin's spool to a cohort: prepared scans, sentences of reports, no identities.

source (folder, archive) > study (study) + reports (reports, documents, messages) > prepared and de-identified
(make, headers, cleaning, sentences) > record > rows of studies.jsonl (gather)
"""
