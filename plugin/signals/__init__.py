"""Signals: what was found goes out at once to those who order the reading: HL7 v2, FHIR, or a webhook.

A message is made of a template and of facts that were written with the results; it goes out by the same rules as a
delivery: taken, refused for good, or not now.
"""
