"""``kubectl enginehouse``: what an engine looks like, why it is not Ready, its logs, and one replica out of service.

Needs a kubeconfig and kubectl, and no operator: everything is read from the objects that operator and monitors write.
"""
