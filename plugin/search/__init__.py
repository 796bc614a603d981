"""The archive as a thing to ask: words to studies, studies to similar ones, all scores again from what is kept.

    searcher = Searcher(plugin)                        # once a process: it keeps the text tower and the vectors open
    found = searcher.search("acute subdural hematoma with midline shift", limit=20)
    found = searcher.search(like=study_instance_uid, filters=Filters.parse(age="60-90", findings=["mass_effect>=0.4"]))
    found.hits[0].study_instance_uid, found.hits[0].score, found.caution

It raises `plugin.search.SearchError` (a ValueError) with a sentence for a person where a question cannot be answered.
"""

from plugin.index.filters import AGE_GROUPS, Filters, SearchError
from plugin.search.searcher import CAUTION, Found, Hit, Searcher

__all__ = ["AGE_GROUPS", "CAUTION", "Filters", "Found", "Hit", "SearchError", "Searcher"]
