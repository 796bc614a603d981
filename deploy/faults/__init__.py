"""The fault bench: phantoms are sent while something is killed or cut, and then the books must balance.

Modules: `kinds` (the table of faults), `rounds` (one round, from the start of the processes to the books), `books`
(what must hold in the end), `journal` (what was found, as JSON lines, and the tables made of it); and what a round is
made of: `world` (what rounds share), `stack` (our processes), `nursery` (their quick start), `servers` (other
people's), `gate` (a proxy that misbehaves), `senders`, `material`. `load` is what senders do for the hour of the soak.
"""
