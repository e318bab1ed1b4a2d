"""The controller: it serves the mesh to the proxies and changes it without losing a request.

It watches Istio objects in files and the health of endpoints, compiles both to xDS resources, and
serves these to the proxies. Every change of the objects, by a command or in an editor, goes through
a transition of gated stages.

A weight change passes these modules, in order: `api.service` and `api.request_reading` read it,
`controller` gives it its turn, `configuration.proposals` works it out, `served_configuration`
compiles and plans it, `transitions.executor` executes it stage by stage and writes each step to
`configuration.journal`, and `transitions.gates` and `transitions.worker_sync` wait for the proxies.
"""
