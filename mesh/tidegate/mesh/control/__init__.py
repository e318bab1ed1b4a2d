"""The controller: it holds the parts of the mesh together and changes it without losing a request.

It watches Istio objects in files and the health of endpoints, compiles both to xDS resources, and
serves these to the proxies. Whatever changes in the objects goes through a transition of gated
stages (`transition`), whether a command or an editor changed them.
"""
