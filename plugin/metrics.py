"""What a process counts of its own work, for Prometheus: the table of its metrics.

Each role is one process of one thread pool (workers do one item at a time), so nothing is shared between processes.
Labels are the names of this code and of the settings, never anything that came with a study: no label can grow, and
none names a patient.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

ASSOCIATIONS = Counter("hlip_associations", "Associations asked for.", ["outcome"], registry=REGISTRY)
ASSOCIATIONS_OPEN = Gauge("hlip_associations_open", "Associations that are open.", registry=REGISTRY)
INSTANCES = Counter("hlip_instances", "Instances that came.", ["way", "outcome"], registry=REGISTRY)
BYTES = Counter("hlip_received_bytes", "Bytes of the instances that were kept.", ["way"], registry=REGISTRY)
INDEXED = Counter("hlip_indexed", "Arrivals taken into the index.", ["fate"], registry=REGISTRY)
SERIES = Counter("hlip_series_prepared", "Series prepared or refused.", ["outcome", "reason"], registry=REGISTRY)
STUDIES = Counter("hlip_studies_analysed", "Studies analysed or refused.", ["outcome", "reason"], registry=REGISTRY)
POSITIVE = Counter("hlip_positive_studies", "Studies with a positive finding.", ["critical"], registry=REGISTRY)
STAGE_SECONDS = Histogram(
    "hlip_stage_seconds", "How long an item of a stage took.", ["stage"], buckets=SECONDS, registry=REGISTRY
)
DELIVERIES = Counter("hlip_delivery_tries", "Tries to deliver.", ["destination", "outcome"], registry=REGISTRY)
SIGNALS = Counter("hlip_signal_tries", "Tries to signal.", ["receiver", "outcome"], registry=REGISTRY)
FAILURES = Counter("hlip_work_failures", "Items that failed and were put back.", ["queue"], registry=REGISTRY)
LEASES_LOST = Counter("hlip_leases_lost", "Claims lost while their work went on.", ["queue"], registry=REGISTRY)
GIVEN_UP = Counter("hlip_given_up", "Items given up after too many tries.", registry=REGISTRY)
TICKED = Gauge("hlip_scheduler_ticked_timestamp_seconds", "When the scheduler last ended a tick.", registry=REGISTRY)
ROLE = Gauge("hlip_role_info", "1; which role this is.", ["role", "version"], registry=REGISTRY)
